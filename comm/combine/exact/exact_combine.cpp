#include "comm/combine/exact/exact_combine.hpp"

#include <algorithm>
#include <span>

#include "comm/combine/host/gather.hpp"
#include "comm/combine/host/output_rows.hpp"
#include "comm/combine/way_strategies.hpp"
#include "core/check.hpp"
#include "core/numbers/softmax_merge.hpp"

namespace kvmesh {
namespace {

/// Calls `visit(token, head)` for each row of `block` that `rank` takes part in, by token.
template <class Visit>
void for_each_row(const RowMap& map, const CombineBlock& block, int rank, const Visit& visit) {
  for (std::int64_t t = block.tokens.begin; t < block.tokens.end; ++t) {
    if (!block.has_token(t) || !map.takes_part(t, rank)) continue;
    for (std::int64_t h = block.heads.begin; h < block.heads.end; ++h) visit(t, h);
  }
}

/// Returns how many floats hold this many exact rows: a row is a multiple of 16 bytes.
std::int64_t floats_of(std::int64_t rows, std::int64_t row_bytes) {
  return rows * row_bytes / static_cast<std::int64_t>(sizeof(float));
}

/// The finished row `o` with a sink: returns its LSE.
float count_sink(float lse, float sink, std::span<float> o) {
  const float merged = lse_with_sink(lse, sink);
  const float factor = merge_weight(lse, merged);
  for (float& element : o) element *= factor;
  return merged;
}

}  // namespace

void ExactCombine::plan(const CombineShape& shape, const CombineOptions& options,
                        const PlanDigest& digest) {
  const int ranks = rows_->ranks();
  static_cast<void>(resolve_strategy(WayKind::kHost, shape, options, ranks));
  CombineOptions exchanged = options;
  exchanged.strategy = CombineStrategy::kAllToAll;
  const bool gathers = options.scatter == Scatter::kAll && ranks > 1;
  if (gathers) exchanged.scatter = RowMap(shape, ranks, nullptr).merge_axis();
  HostPlan plan = plan_host_combine(shape, exchanged, rows_->rank(), ranks);
  plan.scatter = options.scatter;
  plan.gathers = gathers;
  plan.digest = digest_of(shape, options, digest);
  plan_ = std::move(plan);
}

void ExactCombine::check_run(const CombineOutput& output) const {
  require(plan_.has_value(), "combine: run without a plan");
  check_output_tensors(output, plan_->map.shape(), plan_->result(), DeviceKind::kCpu);
}

void ExactCombine::run(const ExactRows& mine, const CombineOutput& output, const float* sinks) {
  exchange(mine);
  if (!plan_->gathers) return finish(mine, output, sinks);
  finish(mine, room_for_own_rows(*rows_, *plan_, output), sinks);
  gather_rows(*rows_, *plan_, output, "combine: gather the finished rows");
}

void ExactCombine::exchange(const ExactRows& mine) {
  const RowMap& map = plan_->map;
  rows_->identify(plan_->digest);
  if (map.ranks() == 1) return;
  const std::int64_t heads = map.shape().heads;
  for (int peer = 0; peer < map.ranks(); ++peer) {
    if (peer == plan_->rank) continue;
    const auto at = static_cast<std::size_t>(peer);
    rows_->incoming(peer).resize(floats_of(plan_->received_rows[at], mine.row_bytes()));
    auto* to = reinterpret_cast<std::byte*>(
        rows_->outgoing(peer).resize(floats_of(plan_->sent_rows[at], mine.row_bytes())));
    for_each_row(map, map.block(plan_->merging, peer), plan_->rank,
                 [&](std::int64_t t, std::int64_t h) {
                   to = std::copy_n(mine.bytes(t * heads + h), mine.row_bytes(), to);
                 });
  }
  rows_->exchange("combine: exact rows to their owners");
}

/// Merges one row of this rank's block. REQUIRES: all of them are merged, in order.
void ExactCombine::merge(const ExactRows& mine, std::int64_t token, std::int64_t head,
                         const ExactRow& merged) {
  const RowMap& map = plan_->map;
  clear_row(merged, mine.dim());
  for (int rank = 0; rank < map.ranks(); ++rank) {
    if (!map.takes_part(token, rank)) continue;
    const ExactRow from = rank == plan_->rank
                              ? mine.row(token * map.shape().heads + head)
                              : ExactRows(rows_->incoming(rank).data(), static_cast<int>(map.dim()))
                                    .row(next_[static_cast<std::size_t>(rank)]++);
    merge_row(merged, from, mine.dim());
  }
}

void ExactCombine::finish(const ExactRows& mine, const CombineOutput& output, const float* sinks) {
  merged_.resize(static_cast<std::size_t>(mine.row_bytes()));
  finished_.resize(static_cast<std::size_t>(plan_->map.dim()));
  next_.assign(static_cast<std::size_t>(plan_->map.ranks()), 0);
  const CombineBlock own = plan_->own();
  const auto v_dim = static_cast<int>(plan_->map.dim());
  const ExactRow row = ExactRows(merged_.data(), v_dim).row(0);
  for (std::int64_t t = own.tokens.begin; t < own.tokens.end; ++t) {
    if (!own.has_token(t)) continue;
    for (std::int64_t h = own.heads.begin; h < own.heads.end; ++h) {
      merge(mine, t, h, row);
      float lse = finish_row(row, finished_.data(), v_dim);
      if (sinks != nullptr) lse = count_sink(lse, sinks[h], finished_);
      store_row(output, t - own.tokens.begin, h - own.heads.begin, finished_.data(), lse);
    }
  }
}

}  // namespace kvmesh
