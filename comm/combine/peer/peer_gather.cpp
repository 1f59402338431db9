// The query gather over mapped memory. Only for builds with CUDA.
#include "comm/combine/gather/gather_way.hpp"
#include "comm/combine/peer/kernels/peer_gather_params.hpp"
#include "comm/combine/peer/peer_target.hpp"
#include "core/check.hpp"
#include "core/cuda/check.hpp"
#include "core/cuda/memory.hpp"

namespace kvmesh {
namespace {

/// `view` may have no memory if it has no heads.
cuda::GatheredRows rows_of(const ConstTensorView& view) {
  const auto element = static_cast<std::int64_t>(size_bytes(view.dtype));
  return {.data = static_cast<unsigned char*>(const_cast<void*>(view.data)),
          .token_stride = view.stride(0) * element,
          .head_stride = view.stride(1) * element};
}

class PeerGather : public GatherWay {
 public:
  PeerGather(PeerWindow& window, std::optional<RowForm> form) : window_(window), form_(form) {}

  void set_layer(int layer) override { layer_ = layer; }
  void run(const QueryShares& queries, Stream stream) override;

 private:
  PeerLayout layout_of(const CombineShape& rows, Dtype dtype) const;

  PeerWindow& window_;
  std::optional<RowForm> form_;
  int layer_ = -1;
  int runs_ = 0;
};

PeerLayout PeerGather::layout_of(const CombineShape& rows, Dtype dtype) const {
  const CombineOptions to_heads{.scatter = Scatter::kHeads, .travels_as = dtype};
  if (form_) return peer_layout(rows, to_heads, window_.ranks(), *form_);
  const std::optional<PeerLayout> layout =
      fitting_layout(rows, to_heads, window_.ranks(), window_.room());
  require(layout.has_value(), "gather_queries: [{}, {}, {}] does not fit into a window",
          rows.tokens, rows.heads, rows.dim);
  return *layout;
}

void PeerGather::run(const QueryShares& queries, Stream stream) {
  window_.check(kGatherQueries);
  const TensorView& all = queries.all;
  const CombineShape rows{all.size(0), all.size(1), all.size(2)};
  const PeerLayout layout = layout_of(rows, all.dtype);
  const cuda::PeerGatherParams params{
      .to = peer_target(window_, rows, Scatter::kHeads, all.dtype, layout),
      .call = {.window = window_.view(),
               .rank = window_.rank().value,
               .ranks = window_.ranks(),
               .operation = PeerOperation::kGatherQueries,
               .layer = layer_,
               .run = runs_},
      .mine = rows_of(queries.mine),
      .all = rows_of(all),
      .planned_tokens = queries.planned_tokens,
      .row_bytes = static_cast<int>(all.size(2) * static_cast<std::int64_t>(size_bytes(all.dtype))),
      .by_own_heads = Divisor(static_cast<int>(queries.mine.size(1))),
      .by_cells = by_cells_of(layout),
      .most_blocks = window_.most_blocks()};
  cuda_memory::use_device(window_.device().index);
  check(cuda::launch_peer_gather(params, static_cast<cudaStream_t>(stream.handle)),
        "gather_queries: peers");
  ++runs_;
}

}  // namespace

std::unique_ptr<GatherWay> make_peer_gather(PeerWindow& window, std::optional<RowForm> form) {
  return std::make_unique<PeerGather>(window, form);
}

}  // namespace kvmesh
