#include "comm/combine/rows.hpp"

#include "core/check.hpp"
#include "core/tensors/tensor_check.hpp"

namespace kvmesh {
namespace {

void check_view(const TensorView& view, std::string_view what, int dims) {
  require(view.dims == dims, "combine: {} has {} dimensions, want {}", what, view.dims, dims);
  check_tensor(what, view, dims);
}

void check_float32(const TensorView& view, std::string_view what) {
  require(view.dtype == Dtype::kFloat32, "combine: {} is {}, want float32", what, view);
}

void check_o(const TensorView& o, std::string_view what) {
  check_view(o, what, 3);
  require(o.size(2) == 1 || has_contiguous_rows(o),
          "combine: the last dimension of {} has stride {}", what, o.stride(2));
}

void check_partial(const Partial& mine) {
  check_o(mine.o, "the partial's o");
  check_float32(mine.o, "the partial's o");
  check_view(mine.lse, "the partial's lse", 2);
  check_float32(mine.lse, "the partial's lse");
  require(mine.lse.size(0) == mine.o.size(0) && mine.lse.size(1) == mine.o.size(1),
          "combine: the partial's o is {} and its lse {}", mine.o, mine.lse);
}

void check_device(const TensorView& view, std::string_view what, DeviceKind device) {
  require(view.empty() || view.device.kind == device, "combine: {} is not in {} memory", what,
          device == DeviceKind::kCpu ? "host" : "the GPU's");
}

void check_output(const CombineOutput& output, const CombineBlock& block, std::int64_t dim) {
  const std::int64_t tokens = block.tokens.size();
  const std::int64_t heads = block.heads.size();
  check_o(output.o, "the output's o");
  require(output.o.size(0) == tokens && output.o.size(1) == heads && output.o.size(2) == dim,
          "combine: the output's o is {}, want [{}, {}, {}]", output.o, tokens, heads, dim);
  check_output_tensor("the output's o", output.o, 3);
  if (output.lse.empty()) return;
  check_output_tensor("the output's lse", output.lse, 2);
  check_view(output.lse, "the output's lse", 2);
  check_float32(output.lse, "the output's lse");
  require(output.lse.size(0) == tokens && output.lse.size(1) == heads,
          "combine: the output's lse is {}, want [{}, {}]", output.lse, tokens, heads);
}

}  // namespace

CombineBlock block_of(const CombineShape& shape, Scatter scatter, int owner, int ranks) {
  CombineBlock block{{0, shape.tokens}, {0, shape.heads}};
  if (scatter == Scatter::kTokens) block.tokens = share_of(shape.tokens, owner, ranks);
  if (scatter == Scatter::kHeads) block.heads = share_of(shape.heads, owner, ranks);
  return block;
}

std::int64_t RowMap::rows_of(int rank, const CombineBlock& block) const {
  if (!participation_) return block.rows();
  std::int64_t tokens = 0;
  for (std::int64_t t = block.tokens.begin; t < block.tokens.end; ++t) {
    tokens += block.has_token(t) && takes_part(t, rank) ? 1 : 0;
  }
  return tokens * block.heads.size();
}

CombineShape shape_of(const Partial& mine) {
  check_view(mine.o, "the partial's o", 3);
  return {mine.o.size(0), mine.o.size(1), mine.o.size(2)};
}

void check_plan(const CombineShape& shape, const CombineOptions& options, int ranks) {
  const Participation* participation = options.participation;
  require(shape.tokens >= 0 && shape.heads >= 0 && shape.dim >= 0,
          "combine: {} tokens, {} heads, dim {}", shape.tokens, shape.heads, shape.dim);
  require(participation != nullptr || options.scatter != Scatter::kOwner,
          "combine: scatter owner needs a participation mask");
  if (participation == nullptr) return;
  require(participation->ranks() == ranks && participation->tokens() == shape.tokens,
          "combine: the participation is for {} tokens and {} ranks, the partial has {} tokens, "
          "the group {} ranks",
          participation->tokens(), participation->ranks(), shape.tokens, ranks);
}

void check_output_tensors(const CombineOutput& output, const CombineShape& shape,
                          const CombineBlock& own, DeviceKind device) {
  check_output(output, own, shape.dim);
  check_device(output.o, "the output's o", device);
  check_device(output.lse, "the output's lse", device);
}

void check_tensors(const Partial& mine, const CombineOutput& output, const CombineShape& shape,
                   const CombineBlock& own, DeviceKind device) {
  check_partial(mine);
  require(shape_of(mine) == shape, "combine: the partial's o is {}, the plan is for [{}, {}, {}]",
          mine.o, shape.tokens, shape.heads, shape.dim);
  check_device(mine.o, "the partial's o", device);
  check_device(mine.lse, "the partial's lse", device);
  check_output_tensors(output, shape, own, device);
}

}  // namespace kvmesh
