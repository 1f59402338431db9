// Packed all-to-all: every rank sends its (O, LSE) rows to their owners, which merge them.
//
// A message holds the rows of one block that its sender takes part in, by token, then head: all of
// their O, then all of their LSE. Both ends know the mask, so they agree on its length.
#include <algorithm>

#include "comm/combine/merge.hpp"
#include "comm/combine/work.hpp"
#include "core/softmax_merge.hpp"

namespace kvmesh {
namespace {

void pack(const Partial& mine, const RowMap& map, int me, const CombineBlock& block,
          RowBuffer& buffer) {
  const std::int64_t rows = map.rows_of(me, block);
  float* o = buffer.resize(rows * (map.dim() + 1));
  float* lse = o + rows * map.dim();
  for (std::int64_t t = block.tokens.begin; t < block.tokens.end; ++t) {
    if (!map.takes_part(t, me)) continue;
    for (std::int64_t h = block.heads.begin; h < block.heads.end; ++h) {
      o = std::copy_n(o_row(mine, t, h), map.dim(), o);
      *lse++ = lse_of(mine, t, h);
    }
  }
}

}  // namespace

void Combiner::Work::all_to_all(const Partial& mine, const RowMap& map, Scatter scatter,
                                const CombineOutput& output) {
  const CombineBlock own = map.block(scatter, me_);
  for (int rank = 0; rank < map.ranks(); ++rank) {
    if (rank != me_) incoming(rank).resize(map.rows_of(rank, own) * (map.dim() + 1));
  }
  pack(mine, map, me_, own, incoming(me_));
  if (scatter == Scatter::kAll) {
    exchange("combine: partials to all", &incoming(me_));
  } else {
    for (int rank = 0; rank < map.ranks(); ++rank) {
      if (rank != me_) pack(mine, map, me_, map.block(scatter, rank), outgoing(rank));
    }
    exchange("combine: partials to their owners");
  }
  merge_received(map, own, output);
}

void Combiner::Work::merge_received(const RowMap& map, const CombineBlock& own,
                                    const CombineOutput& output) {
  start_reading(map, own);
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
