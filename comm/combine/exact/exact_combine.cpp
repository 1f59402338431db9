#include "comm/combine/exact/exact_combine.hpp"

#include <algorithm>
#include <span>

#include "comm/combine/choose_way.hpp"
#include "comm/combine/host/gather.hpp"
#include "comm/combine/host/output_rows.hpp"
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

/// Every rank merges all rows.
void merge_everything(HostPlan& plan) {
  plan.merging = Scatter::kAll;
  const std::int64_t mine = plan.map.rows_of(plan.rank, plan.map.all());
  for (int peer = 0; peer < plan.map.ranks(); ++peer) {
    plan.sent_rows[static_cast<std::size_t>(peer)] = mine;
    plan.received_rows[static_cast<std::size_t>(peer)] = plan.map.rows_of(peer, plan.map.all());
  }
}

}  // namespace

void ExactCombine::check(const CombineOptions& options) const {
  static_cast<void>(resolve_strategy(WayKind::kHost, {}, options, rows_->ranks()));
}

void ExactCombine::plan(const CombineShape& shape, const CombineOptions& options,
                        const PlanDigest& digest, Finish finish) {
  const int ranks = rows_->ranks();
  static_cast<void>(resolve_strategy(WayKind::kHost, shape, options, ranks));
  CombineOptions exchanged = options;
  exchanged.strategy = CombineStrategy::kAllToAll;
  const bool gathers = options.scatter == Scatter::kAll && ranks > 1 && finish == Finish::kHere;
  if (gathers) exchanged.scatter = RowMap(shape, ranks, nullptr).merge_axis();
  HostPlan plan = plan_host_combine(shape, exchanged, rows_->rank(), ranks);
  plan.scatter = options.scatter;
  plan.gathers = gathers;
  if (options.scatter == Scatter::kAll && !gathers) merge_everything(plan);
  plan.digest = digest_of(shape, options, digest);
  plan_ = std::move(plan);
}

void ExactCombine::check_run(const CombineOutput& output, DeviceKind device) const {
  require(plan_.has_value(), "combine: run without a plan");
  check_output_tensors(output, plan_->map.shape(), plan_->result(), device);
}

void ExactCombine::run(const ExactRows& mine, const CombineOutput& output, const float* sinks) {
  exchange(mine);
  if (!plan_->gathers) return finish(mine, output, sinks);
  finish(mine, room_for_own_rows(*rows_, *plan_, output), sinks);
  gather_rows(*rows_, *plan_, output, "combine: gather the finished rows");
}

void ExactCombine::run_unfinished(const ExactRows& mine, const ExactRows& merged) {
  exchange(mine);
  std::int64_t row = 0;
  merge(
      mine, [&] { return merged.row(row++); }, [](auto...) {});
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

/// Merges row by row, each into `room()`; then calls `done(token, head, row)` if this rank owns it.
template <class Room, class Done>
void ExactCombine::merge(const ExactRows& mine, const Room& room, const Done& done) {
  const RowMap& map = plan_->map;
  const CombineBlock own = plan_->own();
  const auto v_dim = static_cast<int>(map.dim());
  std::vector<std::int64_t> next(static_cast<std::size_t>(map.ranks()));  // row, by rank
  for (std::int64_t t = own.tokens.begin; t < own.tokens.end; ++t) {
    for (std::int64_t h = own.heads.begin; h < own.heads.end; ++h) {
      const ExactRow merged = room();
      clear_row(merged, mine.dim());
      if (!own.has_token(t)) continue;
      for (int rank = 0; rank < map.ranks(); ++rank) {
        if (!map.takes_part(t, rank)) continue;
        const ExactRow from = rank == plan_->rank
                                  ? mine.row(t * map.shape().heads + h)
                                  : ExactRows(rows_->incoming(rank).data(), v_dim)
                                        .row(next[static_cast<std::size_t>(rank)]++);
        merge_row(merged, from, mine.dim());
      }
      done(t, h, merged);
    }
  }
}

void ExactCombine::finish(const ExactRows& mine, const CombineOutput& output, const float* sinks) {
  merged_.resize(static_cast<std::size_t>(mine.row_bytes()));
  finished_.resize(static_cast<std::size_t>(plan_->map.dim()));
  const CombineBlock own = plan_->own();
  const auto v_dim = static_cast<int>(plan_->map.dim());
  merge(
      mine, [&] { return ExactRows(merged_.data(), v_dim).row(0); },
      [&](std::int64_t t, std::int64_t h, const ExactRow& row) {
        float lse = finish_row(row, finished_.data(), v_dim);
        if (sinks != nullptr) lse = count_sink(lse, sinks[h], finished_);
        store_row(output, t - own.tokens.begin, h - own.heads.begin, finished_.data(), lse);
      });
}

}  // namespace kvmesh
