#include "comm/combine/choice/choose_way.hpp"

#include <algorithm>
#include <array>

#include "comm/combine/hierarchical/takes_hosts.hpp"
#include "comm/combine/peer/peer_layout.hpp"
#include "comm/combine/way_strategies.hpp"
#include "core/check.hpp"

namespace kvmesh {
namespace {

bool has(const CombineMeans& means, WayKind way) {
  switch (way) {
    case WayKind::kHost:
      return means.device == DeviceKind::kCpu;
    case WayKind::kStaged:
      return means.device == DeviceKind::kCuda;
    case WayKind::kNccl:
      return means.device == DeviceKind::kCuda && means.has_nccl;
    case WayKind::kPeer:
      return means.device == DeviceKind::kCuda && means.peer.has_value();
    case WayKind::kHierarchical:
      return means.hosts.is_hierarchy() && (means.device == DeviceKind::kCpu || means.has_nccl);
  }
  return false;
}

bool takes(WayKind way, const CombineMeans& means, const CombineShape& shape,
           const CombineOptions& options) {
  if (!has(means, way) || !supports(way, options.strategy)) return false;
  if (way == WayKind::kHierarchical) {
    // Some of a group's GPUs cannot reduce over its NCCL communicator.
    return takes_hosts(means.hosts, shape, options.scatter) &&
           (means.device == DeviceKind::kCpu ||
            options.strategy != CombineStrategy::kReduceScatter);
  }
  return way != WayKind::kPeer ||
         fitting_layout(shape, options, means.ranks, *means.peer).has_value();
}

/// The order in which ways are tried if none is requested. Two H200, 32 to 8192 rows of dim 128 as
/// bfloat16: by peer 3-8 us, by NCCL 12-28.
constexpr std::array kByPreference = {WayKind::kPeer, WayKind::kHierarchical, WayKind::kNccl,
                                      WayKind::kStaged, WayKind::kHost};

/// Returns whether a way is used if none is requested. Ranks that share a GPU take turns on it
/// while they wait for one another's stores, which takes milliseconds. The hierarchical way has one
/// more step. On CPUs it takes about 15 us, the time of 64 KiB over the host's link of 25 to 50
/// Gbit/s. On GPUs it is one more combine over NCCL, 13 us, the time of 640 KiB over the 400 Gbit/s
/// that each GPU has (not measured between hosts).
bool pays(WayKind way, const CombineMeans& means, const CombineShape& shape) {
  constexpr std::int64_t kSavedOfHost = 64 * 1024, kSavedOfGpu = 640 * 1024;
  if (way == WayKind::kPeer) return !means.shares_gpus;
  if (way != WayKind::kHierarchical) return true;
  const std::int64_t leave_a_host = bytes_to_all(shape, means.hosts.hosts) / means.hosts.hosts;
  const std::int64_t saved = leave_a_host * (means.hosts.per_host - 1);
  return means.device == DeviceKind::kCpu ? saved > kSavedOfHost
                                          : saved / means.hosts.per_host > kSavedOfGpu;
}

}  // namespace

bool follows_mask_in_graph(WayKind way) {
  switch (way) {
    case WayKind::kHost:
    case WayKind::kStaged:  // none of them can be captured
      return false;
    case WayKind::kHierarchical:  // as NCCL, or as the host's
    case WayKind::kNccl:  // its messages are in the graph; its reductions send all rows anyway
      return false;
    case WayKind::kPeer:  // its kernel reads the mask
      return true;
  }
  return false;
}

std::vector<WayStrategy> ways_to_choose_from(const CombineMeans& means, const CombineShape& shape,
                                             const CombineOptions& options) {
  std::vector<WayStrategy> ways;
  if (options.scatter == Scatter::kOwner) return ways;
  for (const WayKind way : kByPreference) {
    if (!takes(way, means, shape, options)) continue;
    if (way == WayKind::kPeer && means.shares_gpus) continue;
    if (way == WayKind::kStaged && !ways.empty()) continue;
    ways.push_back({way, resolve_strategy(way, shape, options, means.ranks)});
    const bool may_reduce = way == WayKind::kNccl && options.strategy == CombineStrategy::kAuto &&
                            options.scatter == Scatter::kAll && means.ranks > 2;
    if (!may_reduce) continue;
    const bool reduces = ways.back().strategy == CombineStrategy::kReduceScatter;
    ways.push_back({way, reduces ? CombineStrategy::kAllToAll : CombineStrategy::kReduceScatter});
  }
  return ways;
}

namespace {

WayKind way_for(const CombineMeans& means, const CombineShape& shape,
                const CombineOptions& options) {
  require(!options.way || has(means, *options.way), "combine: these ranks have no way {}",
          options.way ? name(*options.way) : "");
  require(!options.way || supports(*options.way, options.strategy),
          "combine: the way {} has no strategy {}", options.way ? name(*options.way) : "",
          name(options.strategy));
  for (const std::optional<WayKind>& wanted : {options.way, means.preferred}) {
    if (wanted && takes(*wanted, means, shape, options)) return *wanted;
  }
  const auto* way = std::ranges::find_if(kByPreference, [&](WayKind kind) {
    return pays(kind, means, shape) && takes(kind, means, shape, options);
  });
  require(way != kByPreference.end(),
          "combine: the strategy {} is for ranks with a GPU each, and NCCL",
          name(options.strategy));
  return *way;
}

/// Returns the rule's choice, or the table's faster one. The table's is no reduction unless the
/// rule's is one, since only rows that are merged in rank order have bits that depend on no other
/// rows.
WayStrategy way_and_strategy(const CombineMeans& means, const CombineShape& shape,
                             const CombineOptions& options) {
  const WayKind way = way_for(means, shape, options);
  const WayStrategy by_rule{way, resolve_strategy(way, shape, options, means.ranks)};
  if (means.table == nullptr) return by_rule;
  std::vector<WayStrategy> ways = ways_to_choose_from(means, shape, options);
  const bool is_asked_for = options.way || means.preferred;
  std::erase_if(ways, [&](const WayStrategy& each) {
    return each == by_rule || each.strategy == CombineStrategy::kReduceScatter ||
           (is_asked_for && each.way != way);
  });
  ways.insert(ways.begin(), by_rule);
  return fastest(*means.table, ways, options.scatter, shape);
}

}  // namespace

WayKind choose_gather_way(const CombineMeans& means, const CombineShape& rows, Dtype dtype,
                          std::optional<WayKind> asked) {
  CombineMeans flat = means;
  flat.hosts = {};
  if (asked == WayKind::kHierarchical) asked.reset();
  // Each rank's share has the room of the rows that a combine to heads would give it.
  return way_for(flat, rows, {.scatter = Scatter::kHeads, .way = asked, .travels_as = dtype});
}

CombineChoice choose_way(const CombineMeans& means, const CombineShape& shape,
                         const CombineOptions& options, bool has_limits) {
  const auto [way, strategy] = way_and_strategy(means, shape, options);
  const bool to_owners = options.scatter == Scatter::kOwner;
  // Captured messages would go to the owners of one step: those of all steps are among all ranks.
  const bool to_all = to_owners && has_limits && way == WayKind::kNccl;
  return {.way = way,
          .strategy = strategy,
          .has_mask = !has_limits || follows_mask_in_graph(way) || (to_owners && !to_all),
          .scatter = to_all ? Scatter::kAll : options.scatter};
}

}  // namespace kvmesh
