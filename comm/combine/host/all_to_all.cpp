// Packed all-to-all: every rank sends its (O, LSE) rows to their owners, which merge them.
//
// A message holds the rows of one block that its sender takes part in, by token, then head: all of
// their O, then all of their LSE. Both ends know the mask, so they agree on its length.
#include <algorithm>

#include "comm/combine/host/host_way.hpp"
#include "comm/combine/host/merge.hpp"
#include "core/softmax_merge.hpp"

namespace kvmesh {
namespace {

/// Puts the `rows` rows of `block` that this rank takes part in into its message.
void pack(const Partial& mine, const HostPlan& plan, const CombineBlock& block, std::int64_t rows,
          RowBuffer& buffer) {
  const RowMap& map = plan.map;
  float* o = buffer.resize(rows * (map.dim() + 1));
  float* lse = o + rows * map.dim();
  for (std::int64_t t = block.tokens.begin; t < block.tokens.end; ++t) {
    if (!map.takes_part(t, plan.rank)) continue;
    for (std::int64_t h = block.heads.begin; h < block.heads.end; ++h) {
      o = std::copy_n(o_row(mine, t, h), map.dim(), o);
      *lse++ = lse_of(mine, t, h);
    }
  }
}

}  // namespace

void HostWay::all_to_all(const Partial& mine, const CombineOutput& output) {
  const RowMap& map = plan_->map;
  const int me = plan_->rank;
  const auto pack_for = [&](int owner, RowBuffer& buffer) {
    const std::int64_t rows = plan_->sent_rows[static_cast<std::size_t>(owner)];
    pack(mine, *plan_, map.block(plan_->merging, owner), rows, buffer);
  };
  for (int rank = 0; rank < map.ranks(); ++rank) {
    const std::int64_t rows = plan_->received_rows[static_cast<std::size_t>(rank)];
    if (rank != me) rows_->incoming(rank).resize(rows * (map.dim() + 1));
  }
  pack_for(me, rows_->incoming(me));
  if (plan_->merging == Scatter::kAll) {
    rows_->send_to_all(rows_->incoming(me), "combine: partials to all");
  } else {
    for (int rank = 0; rank < map.ranks(); ++rank) {
      if (rank != me) pack_for(rank, rows_->outgoing(rank));
    }
    rows_->exchange("combine: partials to their owners");
  }
  merge_received(output);
}

void HostWay::merge_received(const CombineOutput& output) {
  const RowMap& map = plan_->map;
  const CombineBlock own = plan_->own();
  start_reading();
  lses_.resize(static_cast<std::size_t>(map.ranks()));
  for (std::int64_t t = own.tokens.begin; t < own.tokens.end; ++t) {
    for (std::int64_t h = own.heads.begin; h < own.heads.end; ++h) {
      for (Reader& reader : readers_) {
        const bool takes_part = map.takes_part(t, reader.rank);
        lses_[static_cast<std::size_t>(reader.rank)] = takes_part ? *reader.lse++ : kNoKeys;
      }
      const float merged = merged_lse(lses_);
      std::fill(row_.begin(), row_.end(), 0.0f);
      for (Reader& reader : readers_) {
        if (!map.takes_part(t, reader.rank)) continue;
        // A rank without a visible key adds nothing, not even 0 * NaN.
        const float lse = lses_[static_cast<std::size_t>(reader.rank)];
        if (lse != kNoKeys) {
          add_scaled_row(row_.data(), reader.o, merge_weight(lse, merged), map.dim());
        }
        reader.o += map.dim();
      }
      store_row(output, t - own.tokens.begin, h - own.heads.begin, row_.data(), merged);
    }
  }
}

}  // namespace kvmesh
