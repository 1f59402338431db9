// Packed all-to-all: every rank sends its (O, LSE) rows to their owners, which merge them.
//
// A message holds the rows of one block that its sender takes part in, by token, then head: all of
// their O, then all of their LSE. Both ends know the mask, so they agree on its length. Large
// blocks that are in one piece in a contiguous tensor go in two messages, LSE first, and O is not
// copied.
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
    if (!block.has_token(t) || !map.takes_part(t, plan.rank)) continue;
    for (std::int64_t h = block.heads.begin; h < block.heads.end; ++h) {
      o = std::copy_n(o_row(mine, t, h), map.dim(), o);
      *lse++ = lse_of(mine, t, h);
    }
  }
}

}  // namespace

void HostWay::all_to_all(const Partial& mine, const CombineOutput& output) {
  const RowMap& map = plan_->map;
  for (int rank = 0; rank < map.ranks(); ++rank) {
    const std::int64_t rows = plan_->received_rows[static_cast<std::size_t>(rank)];
    if (rank != plan_->rank) rows_->incoming(rank).resize(rows * (map.dim() + 1));
  }
  if (plan_->sends_o_apart) {
    exchange_apart(mine);
  } else {
    exchange_packed(mine);
  }
  merge_received(mine, output);
}

void HostWay::exchange_packed(const Partial& mine) {
  const RowMap& map = plan_->map;
  const int me = plan_->rank;
  const auto pack_for = [&](int owner, RowBuffer& buffer) {
    const std::int64_t rows = plan_->sent_rows[static_cast<std::size_t>(owner)];
    pack(mine, *plan_, map.block(plan_->merging, owner), rows, buffer);
  };
  if (plan_->merging == Scatter::kAll) {
    pack_for(me, rows_->outgoing(me));
    rows_->send_to_all(rows_->outgoing(me), "combine: partials to all");
  } else {
    for (int rank = 0; rank < map.ranks(); ++rank) {
      if (rank != me) pack_for(rank, rows_->outgoing(rank));
    }
    rows_->exchange("combine: partials to their owners");
  }
}

void HostWay::exchange_apart(const Partial& mine) {
  const RowMap& map = plan_->map;
  const bool to_all = plan_->merging == Scatter::kAll;
  const float* o = o_in_one_piece(mine);
  apart_.assign(static_cast<std::size_t>(map.ranks()), {});
  for (int rank = 0; rank < map.ranks(); ++rank) {
    if (rank == plan_->rank && !to_all) continue;
    const CombineBlock block = map.block(plan_->merging, rank);
    const auto first = static_cast<std::size_t>(block.tokens.begin * map.all().heads.end);
    RowBuffer& lses = rows_->outgoing(to_all ? plan_->rank : rank);
    apart_[static_cast<std::size_t>(rank)] = {{o + first * static_cast<std::size_t>(map.dim()),
                                               static_cast<std::size_t>(block.rows() * map.dim())},
                                              &lses};
    if (to_all && rank > 0) continue;  // the same for every rank
    float* lse = lses.resize(block.rows());
    for (std::int64_t t = block.tokens.begin; t < block.tokens.end; ++t) {
      for (std::int64_t h = 0; h < block.heads.end; ++h) *lse++ = lse_of(mine, t, h);
    }
  }
  rows_->exchange_apart(apart_, map.dim(),
                        to_all ? "combine: partials to all" : "combine: partials to their owners");
}

const float* HostWay::o_in_one_piece(const Partial& mine) {
  const CombineBlock all = plan_->map.all();
  const std::int64_t dim = plan_->map.dim();
  const TensorView& o = mine.o;
  const bool is_in_one_piece = (all.heads.end == 1 || o.stride(1) == dim) &&
                               (all.tokens.end == 1 || o.stride(0) == all.heads.end * dim);
  if (is_in_one_piece) return o_row(mine, 0, 0);
  float* copy = rows_->packed().resize(all.rows() * dim);
  float* to = copy;
  for (std::int64_t t = 0; t < all.tokens.end; ++t) {
    for (std::int64_t h = 0; h < all.heads.end; ++h) to = std::copy_n(o_row(mine, t, h), dim, to);
  }
  return copy;
}

void HostWay::merge_received(const Partial& mine, const CombineOutput& output) {
  const RowMap& map = plan_->map;
  const CombineBlock own = plan_->own();
  start_reading();
  lses_.resize(static_cast<std::size_t>(map.ranks()));
  weights_.resize(lses_.size());
  const bool writes_sum = output.o.dtype == Dtype::kFloat32;
  for (std::int64_t t = own.tokens.begin; t < own.tokens.end; ++t) {
    if (!own.has_token(t)) continue;
    for (std::int64_t h = own.heads.begin; h < own.heads.end; ++h) {
      for (Reader& reader : readers_) {
        float& lse = lses_[static_cast<std::size_t>(reader.rank)];
        if (!map.takes_part(t, reader.rank)) {
          lse = kNoKeys;
        } else {
          lse = reader.rank == plan_->rank ? lse_of(mine, t, h) : *reader.lse++;
        }
      }
      const float merged = merge_weights(lses_, weights_);
      list_sources(mine, t, h);
      const std::int64_t token = t - own.tokens.begin, head = h - own.heads.begin;
      float* sum = writes_sum ? output_row(output, token, head) : row_.data();
      sum_rows(sum, sources_, map.dim());
      store_row(output, token, head, sum, merged);
    }
  }
}

// A rank without a visible key adds nothing, not even 0 * NaN.
void HostWay::list_sources(const Partial& mine, std::int64_t token, std::int64_t head) {
  sources_.clear();
  for (Reader& reader : readers_) {
    const auto rank = static_cast<std::size_t>(reader.rank);
    if (!plan_->map.takes_part(token, reader.rank)) continue;
    const float* o = reader.rank == plan_->rank ? o_row(mine, token, head) : reader.o;
    if (lses_[rank] != kNoKeys) sources_.push_back({o, weights_[rank]});
    if (reader.rank != plan_->rank) reader.o += plan_->map.dim();
  }
}

}  // namespace kvmesh
