// Reduce-scatter: with every LSE known, each rank scales its rows by their final weights, and the
// owners only add.
#include <algorithm>

#include "comm/combine/host/host_way.hpp"
#include "comm/combine/host/output_rows.hpp"

namespace kvmesh {

void HostWay::reduce_scatter(const Partial& mine, const CombineOutput& output) {
  gather_lses(mine);
  exchange_rescaled(mine);
  sum_received(output);
}

void HostWay::gather_lses(const Partial& mine) {
  const RowMap& map = plan_->map;
  const int me = plan_->rank;
  const CombineBlock own = plan_->own();
  for (int peer = 0; peer < map.ranks(); ++peer) {
    if (peer == me) continue;
    const auto at = static_cast<std::size_t>(peer);
    float* lse = rows_->outgoing(peer).resize(plan_->sent_lses[at]);
    for_each_lse(map, me, peer, map.block(plan_->merging, peer),
                 [&](std::int64_t t, std::int64_t h) { *lse++ = lse_of(mine, t, h); });
    rows_->incoming(peer).resize(plan_->received_lses[at]);
  }
  rows_->exchange("combine: LSEs");

  lses_.reset(map.ranks(), map.all().rows());
  for (int rank = 0; rank < map.ranks(); ++rank) {
    const float* received = rows_->incoming(rank).data();
    for_each_lse(map, rank, me, own, [&](std::int64_t t, std::int64_t h) {
      lses_.lse(rank, row_of(t, h)) = rank == me ? lse_of(mine, t, h) : *received++;
    });
  }
  lses_.merge();
}

void HostWay::exchange_rescaled(const Partial& mine) {
  const RowMap& map = plan_->map;
  const int me = plan_->rank;
  for (int owner = 0; owner < map.ranks(); ++owner) {
    const CombineBlock block = map.block(plan_->merging, owner);
    RowBuffer& buffer = owner == me ? rows_->incoming(me) : rows_->outgoing(owner);
    float* scaled = buffer.resize(plan_->sent_rows[static_cast<std::size_t>(owner)] * map.dim());
    for (std::int64_t t = block.tokens.begin; t < block.tokens.end; ++t) {
      if (!map.takes_part(t, me)) continue;
      for (std::int64_t h = block.heads.begin; h < block.heads.end; ++h, scaled += map.dim()) {
        const std::int64_t row = row_of(t, h);
        if (lses_.lse(me, row) == kNoKeys) {
          std::fill_n(scaled, map.dim(), 0.0f);  // not 0 * O: O may be anything
        } else {
          scale_row(scaled, o_row(mine, t, h), lses_.weight(me, row), map.dim());
        }
      }
    }
  }
  for (int rank = 0; rank < map.ranks(); ++rank) {
    const std::int64_t rows = plan_->received_rows[static_cast<std::size_t>(rank)];
    if (rank != me) rows_->incoming(rank).resize(rows * map.dim());
  }
  rows_->exchange("combine: rescaled rows to their owners");
}

void HostWay::sum_received(const CombineOutput& output) {
  const RowMap& map = plan_->map;
  const CombineBlock own = plan_->own();
  start_reading();
  for (std::int64_t t = own.tokens.begin; t < own.tokens.end; ++t) {
    for (std::int64_t h = own.heads.begin; h < own.heads.end; ++h) {
      std::fill(row_.begin(), row_.end(), 0.0f);
      for (Reader& reader : readers_) {
        if (!map.takes_part(t, reader.rank)) continue;
        add_row(row_.data(), reader.o, map.dim());
        reader.o += map.dim();
      }
      store_row(output, t - own.tokens.begin, h - own.heads.begin, row_.data(),
                lses_.merged(row_of(t, h)));
    }
  }
}

}  // namespace kvmesh
