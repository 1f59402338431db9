// Packed all-to-all: every rank sends its (O, LSE) rows to their owners, which merge them.
//
// A message holds the rows of one block that its sender takes part in, by token, then head: all of
// their O, then all of their LSE. Both ends know the mask, so they agree on its length. Large
// blocks that are in one piece in a contiguous tensor go in two messages, LSE first, and O is not
// copied.
#include <algorithm>

#include "comm/combine/host/host_way.hpp"
#include "comm/combine/host/output_rows.hpp"
#include "core/tensors/copy_tensor.hpp"

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
    if (rank == plan_->rank) continue;
    rows_->incoming(rank).resize(rows * (map.dim() + (plan_->sends_o_apart ? 0 : 1)));
    rows_->incoming_lses(rank).resize(plan_->sends_o_apart ? rows : 0);
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
  for (int rank = 0; rank < map.ranks(); ++rank) {
    if (rank == plan_->rank && !to_all) continue;
    const CombineBlock block = map.block(plan_->merging, rank);
    const auto first = static_cast<std::size_t>(block.tokens.begin * map.all().heads.end);
    RowBuffer& lses = rows_->outgoing(to_all ? plan_->rank : rank);
    RowBuffer& incoming = rows_->incoming(rank);
    rows_->apart()[static_cast<std::size_t>(rank)] = {
        {o + first * static_cast<std::size_t>(map.dim()),
         static_cast<std::size_t>(block.rows() * map.dim())},
        &lses,
        std::span(incoming.data(), static_cast<std::size_t>(incoming.floats()))};
    if (to_all && rank > 0) continue;  // the same for every rank
    float* lse = lses.resize(block.rows());
    for (std::int64_t t = block.tokens.begin; t < block.tokens.end; ++t) {
      for (std::int64_t h = 0; h < block.heads.end; ++h) *lse++ = lse_of(mine, t, h);
    }
  }
  rows_->exchange_apart(to_all ? "combine: partials to all" : "combine: partials to their owners");
}

const float* HostWay::o_in_one_piece(const Partial& mine) {
  const CombineBlock all = plan_->map.all();
  const std::int64_t dim = plan_->map.dim();
  if (is_in_one_piece(mine.o)) return o_row(mine, 0, 0);
  float* copy = rows_->packed().resize(all.rows() * dim);
  float* to = copy;
  for (std::int64_t t = 0; t < all.tokens.end; ++t) {
    for (std::int64_t h = 0; h < all.heads.end; ++h) to = std::copy_n(o_row(mine, t, h), dim, to);
  }
  return copy;
}

void HostWay::merge_received(const Partial& mine, const CombineOutput& output) {
  const CombineBlock own = plan_->own();
  start_reading();
  const bool writes_sum = output.o.dtype == Dtype::kFloat32;
  for (std::int64_t t = own.tokens.begin; t < own.tokens.end; ++t) {
    if (!own.has_token(t)) continue;
    merge_lses_of(mine, t);
    for (std::int64_t h = own.heads.begin; h < own.heads.end; ++h) {
      list_sources(mine, t, h);
      const std::int64_t token = t - own.tokens.begin, head = h - own.heads.begin;
      float* sum = writes_sum ? output_row(output, token, head) : row_.data();
      sum_rows(sum, sources_, plan_->map.dim());
      store_row(output, token, head, sum, lses_.merged(head));
    }
  }
}

/// Merges the LSEs of one token, for this rank's own heads.
void HostWay::merge_lses_of(const Partial& mine, std::int64_t token) {
  const IndexRange heads = plan_->own().heads;
  lses_.reset(plan_->map.ranks(), heads.size());
  for (Reader& reader : readers_) {
    if (!plan_->map.takes_part(token, reader.rank)) continue;
    for (std::int64_t h = heads.begin; h < heads.end; ++h) {
      lses_.lse(reader.rank, h - heads.begin) =
          reader.rank == plan_->rank ? lse_of(mine, token, h) : *reader.lse++;
    }
  }
  lses_.merge();
}

// A rank without a visible key adds nothing, not even 0 * NaN.
void HostWay::list_sources(const Partial& mine, std::int64_t token, std::int64_t head) {
  const std::int64_t row = head - plan_->own().heads.begin;
  sources_.clear();
  for (Reader& reader : readers_) {
    if (!plan_->map.takes_part(token, reader.rank)) continue;
    const float* o = reader.rank == plan_->rank ? o_row(mine, token, head) : reader.o;
    if (lses_.lse(reader.rank, row) != kNoKeys) {
      sources_.push_back({o, lses_.weight(reader.rank, row)});
    }
    if (reader.rank != plan_->rank) reader.o += plan_->map.dim();
  }
}

}  // namespace kvmesh
