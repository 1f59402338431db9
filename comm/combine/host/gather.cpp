#include "comm/combine/host/gather.hpp"

#include "comm/combine/host/merge.hpp"

namespace kvmesh {
namespace {

/// Stores the merged rows of `block`: `merged` is all of their O, then all of their LSE.
void store_block(const CombineOutput& output, const CombineBlock& block, std::int64_t dim,
                 const float* merged) {
  const float* o = merged;
  const float* lse = merged + block.rows() * dim;
  for (std::int64_t t = block.tokens.begin; t < block.tokens.end; ++t) {
    for (std::int64_t h = block.heads.begin; h < block.heads.end; ++h, o += dim) {
      store_row(output, t, h, o, *lse++);
    }
  }
}

}  // namespace

CombineOutput room_for_own_rows(RowExchange& rows, const HostPlan& plan) {
  const CombineBlock own = plan.own();
  const std::int64_t tokens = own.tokens.size(), heads = own.heads.size(), dim = plan.map.dim();
  float* o = rows.merged().resize(own.rows() * (dim + 1));
  return {.o = tensor(o, {tokens, heads, dim}),
          .lse = tensor(o + own.rows() * dim, {tokens, heads})};
}

void gather_rows(RowExchange& rows, const HostPlan& plan, const CombineOutput& output,
                 std::string_view operation) {
  const RowMap& map = plan.map;
  for (int peer = 0; peer < map.ranks(); ++peer) {
    rows.incoming(peer).resize(map.block(plan.merging, peer).rows() * (map.dim() + 1));
  }
  rows.send_to_all(rows.merged(), operation);
  for (int rank = 0; rank < map.ranks(); ++rank) {
    const float* merged = rank == plan.rank ? rows.merged().data() : rows.incoming(rank).data();
    store_block(output, map.block(plan.merging, rank), map.dim(), merged);
  }
}

}  // namespace kvmesh
