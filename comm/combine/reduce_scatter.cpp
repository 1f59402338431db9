// Reduce-scatter: with every LSE known, each rank scales its rows by their final weights, and the
// owners only add.
#include <algorithm>

#include "comm/combine/merge.hpp"
#include "comm/combine/work.hpp"
#include "core/softmax_merge.hpp"

namespace kvmesh {
namespace {

/// The heads of a token whose LSEs `rank` needs: all if it must scale its own rows, else those
/// whose merged LSE it owes.
Share heads_needed(const RowMap& map, int rank, const CombineBlock& owned, std::int64_t token) {
  if (map.takes_part(token, rank)) return map.all().heads;
  return owned.has_token(token) ? owned.heads : Share{};
}

/// Calls `visit(token, head)` for each LSE that `from` sends to `to`, which owns `owned`.
template <class Visit>
void for_each_lse(const RowMap& map, int from, int to, const CombineBlock& owned,
                  const Visit& visit) {
  for (std::int64_t t = 0; t < map.all().tokens.end; ++t) {
    if (!map.takes_part(t, from)) continue;
    const Share heads = heads_needed(map, to, owned, t);
    for (std::int64_t h = heads.begin; h < heads.end; ++h) visit(t, h);
  }
}

std::int64_t count_lses(const RowMap& map, int from, int to, const CombineBlock& owned) {
  std::int64_t count = 0;
  for_each_lse(map, from, to, owned, [&](std::int64_t, std::int64_t) { ++count; });
  return count;
}

}  // namespace

void Combiner::Work::reduce_scatter(const Partial& mine, const RowMap& map, Scatter scatter,
                                    const CombineOutput& output) {
  gather_lses(mine, map, scatter);
  exchange_rescaled(mine, map, scatter);
  sum_received(map, map.block(scatter, me_), output);
}

void Combiner::Work::gather_lses(const Partial& mine, const RowMap& map, Scatter scatter) {
  const CombineBlock own = map.block(scatter, me_);
  for (int peer = 0; peer < map.ranks(); ++peer) {
    if (peer == me_) continue;
    const CombineBlock owned = map.block(scatter, peer);
    float* lse = outgoing(peer).resize(count_lses(map, me_, peer, owned));
    for_each_lse(map, me_, peer, owned,
                 [&](std::int64_t t, std::int64_t h) { *lse++ = lse_of(mine, t, h); });
    incoming(peer).resize(count_lses(map, peer, me_, own));
  }
  exchange("combine: LSEs");

  lses_.assign(static_cast<std::size_t>(map.all().rows() * map.ranks()), kNoKeys);
  for (int rank = 0; rank < map.ranks(); ++rank) {
    const float* received = incoming(rank).data();
    for_each_lse(map, rank, me_, own, [&](std::int64_t t, std::int64_t h) {
      lses_of(map, t, h)[static_cast<std::size_t>(rank)] =
          rank == me_ ? lse_of(mine, t, h) : *received++;
    });
  }
}

void Combiner::Work::exchange_rescaled(const Partial& mine, const RowMap& map, Scatter scatter) {
  for (int owner = 0; owner < map.ranks(); ++owner) {
    const CombineBlock block = map.block(scatter, owner);
    RowBuffer& buffer = owner == me_ ? incoming(me_) : outgoing(owner);
    float* scaled = buffer.resize(map.rows_of(me_, block) * map.dim());
    for (std::int64_t t = block.tokens.begin; t < block.tokens.end; ++t) {
      if (!map.takes_part(t, me_)) continue;
      for (std::int64_t h = block.heads.begin; h < block.heads.end; ++h, scaled += map.dim()) {
        const std::span<const float> lses = lses_of(map, t, h);
        const float lse = lses[static_cast<std::size_t>(me_)];
        if (lse == kNoKeys) {
          std::fill_n(scaled, map.dim(), 0.0f);  // not 0 * O: O may be anything
        } else {
          scale_row(scaled, o_row(mine, t, h), merge_weight(lse, merged_lse(lses)), map.dim());
        }
      }
    }
  }
  const CombineBlock own = map.block(scatter, me_);
  for (int rank = 0; rank < map.ranks(); ++rank) {
    if (rank != me_) incoming(rank).resize(map.rows_of(rank, own) * map.dim());
  }
  exchange("combine: rescaled rows to their owners");
}

void Combiner::Work::sum_received(const RowMap& map, const CombineBlock& own,
                                  const CombineOutput& output) {
  start_reading(map, own);
  for (std::int64_t t = own.tokens.begin; t < own.tokens.end; ++t) {
    for (std::int64_t h = own.heads.begin; h < own.heads.end; ++h) {
      std::fill(row_.begin(), row_.end(), 0.0f);
      for (Reader& reader : readers_) {
        if (!map.takes_part(t, reader.rank)) continue;
        add_row(row_.data(), reader.o, map.dim());
        reader.o += map.dim();
      }
      store_row(output, t - own.tokens.begin, h - own.heads.begin, row_.data(),
                merged_lse(lses_of(map, t, h)));
    }
  }
}

std::span<float> Combiner::Work::lses_of(const RowMap& map, std::int64_t token, std::int64_t head) {
  const std::int64_t row = token * map.all().heads.size() + head;
  const auto ranks = static_cast<std::size_t>(map.ranks());
  return std::span(lses_).subspan(static_cast<std::size_t>(row) * ranks, ranks);
}

}  // namespace kvmesh
