#include "comm/combine/host/host_plan.hpp"

#include "comm/combine/way_strategies.hpp"
#include "core/hash.hpp"

namespace kvmesh {
namespace {

std::int64_t count_lses(const RowMap& map, int from, int to, const CombineBlock& owned) {
  std::int64_t count = 0;
  for_each_lse(map, from, to, owned, [&](std::int64_t, std::int64_t) { ++count; });
  return count;
}

// Two ranks on two cores, 32 heads, dim 128: 16 KB take as long either way.
constexpr std::int64_t kApartBytes = 16 * 1024;

/// Whether every rank takes part in every row.
bool is_whole(const RowMap& map) {
  for (int rank = 0; rank < map.ranks(); ++rank) {
    if (map.rows_of(rank, map.all()) != map.all().rows()) return false;
  }
  return true;
}

/// Whether the rows of an owner are large and follow one another in a contiguous tensor. The same
/// on every rank.
bool has_large_blocks(const HostPlan& plan) {
  if (plan.merging == Scatter::kHeads || plan.merging == Scatter::kOwner) return false;
  const std::int64_t owners = plan.merging == Scatter::kAll ? 1 : plan.map.ranks();
  const std::int64_t floats = plan.map.all().rows() * plan.map.dim() / owners;
  return floats * static_cast<std::int64_t>(sizeof(float)) >= kApartBytes;
}

}  // namespace

IndexRange heads_needed(const RowMap& map, int rank, const CombineBlock& owned,
                        std::int64_t token) {
  if (map.takes_part(token, rank)) return map.all().heads;
  return owned.has_token(token) ? owned.heads : IndexRange{};
}

PlanDigest digest_of(const CombineShape& shape, const CombineOptions& options, PlanDigest given) {
  Hash lengths;
  lengths.add(shape.tokens).add(shape.heads).add(shape.dim);
  if (options.participation != nullptr) lengths.add_all(options.participation->words());
  if (options.participation != nullptr && options.scatter == Scatter::kOwner) {
    for (std::int64_t t = 0; t < shape.tokens; ++t) {
      lengths.add(options.participation->owner(t).value);
    }
  }
  given.add(PlanGroup::kLengths, lengths.value());
  given.add(PlanGroup::kStrategy, Hash().add(options.strategy).add(options.scatter).value());
  return given;
}

HostPlan plan_host_combine(const CombineShape& shape, const CombineOptions& options, int rank,
                           int ranks) {
  check_plan(shape, options, ranks);
  HostPlan plan{.map = RowMap(shape, ranks, options.participation),
                .rank = rank,
                .strategy = resolve_strategy(WayKind::kHost, shape, options, ranks),
                .scatter = options.scatter,
                .merging = options.scatter};
  plan.gathers =
      plan.scatter == Scatter::kAll && ranks > 1 && goes_by_owners(plan.strategy, shape, ranks);
  if (plan.gathers) plan.merging = plan.map.merge_axis();
  plan.gathers_o_apart = plan.gathers && has_large_blocks(plan);
  plan.sends_o_apart =
      plan.strategy == CombineStrategy::kAllToAll && has_large_blocks(plan) && is_whole(plan.map);
  const bool reduces = plan.strategy == CombineStrategy::kReduceScatter;
  const CombineBlock own = plan.own();
  for (int peer = 0; peer < ranks; ++peer) {
    const CombineBlock owned = plan.map.block(plan.merging, peer);
    plan.sent_rows.push_back(plan.map.rows_of(rank, owned));
    plan.received_rows.push_back(plan.map.rows_of(peer, own));
    if (!reduces) continue;
    plan.sent_lses.push_back(peer == rank ? 0 : count_lses(plan.map, rank, peer, owned));
    plan.received_lses.push_back(peer == rank ? 0 : count_lses(plan.map, peer, rank, own));
  }
  return plan;
}

}  // namespace kvmesh
