#include "comm/combine/host/gather.hpp"

#include "comm/combine/host/output_rows.hpp"
#include "core/tensors/copy_tensor.hpp"

namespace kvmesh {
namespace {

/// Stores the merged rows of `block`; without `o` their LSEs alone.
void store_block(const CombineOutput& output, const CombineBlock& block, std::int64_t dim,
                 const float* o, const float* lse) {
  for (std::int64_t t = block.tokens.begin; t < block.tokens.end; ++t) {
    for (std::int64_t h = block.heads.begin; h < block.heads.end; ++h) {
      if (o == nullptr) {
        store_lse(output, t, h, *lse++);
      } else {
        store_row(output, t, h, o, *lse++);
        o += dim;
      }
    }
  }
}

/// [tokens, heads, dim], in float32: the output's O if it is that, else room in `rows`.
float* all_rows(RowExchange& rows, const HostPlan& plan, const CombineOutput& output) {
  if (output.o.dtype == Dtype::kFloat32 && is_in_one_piece(output.o)) {
    return static_cast<float*>(output.o.data);
  }
  return rows.gathered().resize(plan.map.all().rows() * plan.map.dim());
}

/// The O of a block of whole tokens in all_rows.
std::span<float> o_of(const HostPlan& plan, const CombineBlock& block, float* all) {
  const std::int64_t token = plan.map.shape().heads * plan.map.dim();
  return {all + block.tokens.begin * token, static_cast<std::size_t>(block.tokens.size() * token)};
}

void gather_apart(RowExchange& rows, const HostPlan& plan, const CombineOutput& output,
                  std::string_view operation) {
  float* all = all_rows(rows, plan, output);
  for (int peer = 0; peer < plan.map.ranks(); ++peer) {
    const CombineBlock block = plan.map.block(plan.merging, peer);
    rows.incoming_lses(peer).resize(block.rows());
    rows.apart()[static_cast<std::size_t>(peer)] = {o_of(plan, plan.own(), all), &rows.merged(),
                                                    o_of(plan, block, all)};
  }
  rows.exchange_apart(operation);
  const bool is_stored = all == output.o.data;
  for (int rank = 0; rank < plan.map.ranks(); ++rank) {
    RowBuffer& lses = rank == plan.rank ? rows.merged() : rows.incoming_lses(rank);
    const CombineBlock block = plan.map.block(plan.merging, rank);
    const float* o = is_stored ? nullptr : o_of(plan, block, all).data();
    store_block(output, block, plan.map.dim(), o, lses.data());
  }
}

void gather_packed(RowExchange& rows, const HostPlan& plan, const CombineOutput& output,
                   std::string_view operation) {
  const RowMap& map = plan.map;
  for (int peer = 0; peer < map.ranks(); ++peer) {
    rows.incoming(peer).resize(map.block(plan.merging, peer).rows() * (map.dim() + 1));
  }
  rows.send_to_all(rows.merged(), operation);
  for (int rank = 0; rank < map.ranks(); ++rank) {
    const float* merged = rank == plan.rank ? rows.merged().data() : rows.incoming(rank).data();
    const CombineBlock block = map.block(plan.merging, rank);
    store_block(output, block, map.dim(), merged, merged + block.rows() * map.dim());
  }
}

}  // namespace

CombineOutput room_for_own_rows(RowExchange& rows, const HostPlan& plan,
                                const CombineOutput& output) {
  const CombineBlock own = plan.own();
  const std::int64_t tokens = own.tokens.size(), heads = own.heads.size(), dim = plan.map.dim();
  float* o = nullptr;
  float* lse = nullptr;
  if (plan.gathers_o_apart) {
    o = o_of(plan, own, all_rows(rows, plan, output)).data();
    lse = rows.merged().resize(own.rows());
  } else {
    o = rows.merged().resize(own.rows() * (dim + 1));
    lse = o + own.rows() * dim;
  }
  return {.o = tensor(o, {tokens, heads, dim}), .lse = tensor(lse, {tokens, heads})};
}

void gather_rows(RowExchange& rows, const HostPlan& plan, const CombineOutput& output,
                 std::string_view operation) {
  const auto gather = plan.gathers_o_apart ? gather_apart : gather_packed;
  gather(rows, plan, output, operation);
}

}  // namespace kvmesh
