#include "comm/combine/way_strategies.hpp"

#include "core/check.hpp"

namespace kvmesh {
namespace {

// Between host memories all-to-all sends fewer bytes (each LSE to one owner, not to all) in one
// step less. Reduce-scatter is for links that add on the way.
CombineStrategy fastest_on_host() { return CombineStrategy::kAllToAll; }

// Two H200, NCCL 2.28, dim 128, in a graph: all-to-all is the fastest from 8 to 16384 rows
// (scattered by heads: 11 us against 16 for 8 rows, 41 against 58 for 16384; to all: 12 against 17,
// 67 against 78), since it sends once where the others do twice. To all it sends every row to every
// rank: with more than two ranks that is more than the others do, and from some MB on it shows.
CombineStrategy fastest_over_nccl(const CombineShape& shape, Scatter scatter, int ranks) {
  constexpr std::int64_t kDirectBytes = 4 << 20;
  const bool sends_too_much =
      scatter == Scatter::kAll && ranks > 2 && bytes_to_all(shape, ranks) > kDirectBytes;
  return sends_too_much ? CombineStrategy::kReduceScatter : CombineStrategy::kAllToAll;
}

}  // namespace

std::string_view name(WayKind kind) {
  switch (kind) {
    case WayKind::kHost:
      return "host";
    case WayKind::kStaged:
      return "staged";
    case WayKind::kNccl:
      return "nccl";
    case WayKind::kPeer:
      return "peer";
    case WayKind::kHierarchical:
      return "hierarchical";
  }
  return "unknown";
}

bool supports(WayKind way, CombineStrategy strategy) {
  switch (strategy) {
    case CombineStrategy::kAuto:
    case CombineStrategy::kAllToAll:
      return true;
    case CombineStrategy::kReduceScatter:
      return way != WayKind::kPeer;
    case CombineStrategy::kAllReduce:
      return way == WayKind::kNccl;
  }
  return false;
}

std::int64_t bytes_to_all(const CombineShape& shape, int ranks) {
  const std::int64_t row_bytes = (shape.dim + 1) * static_cast<std::int64_t>(sizeof(float));
  return shape.rows() * row_bytes * (ranks - 1);
}

CombineStrategy resolve_strategy(WayKind way, const CombineShape& shape,
                                 const CombineOptions& options, int ranks) {
  require(options.scatter <= Scatter::kOwner && options.strategy <= CombineStrategy::kAllReduce,
          "combine: scatter {} or strategy {} is not valid", static_cast<int>(options.scatter),
          static_cast<int>(options.strategy));
  require(supports(way, options.strategy), "combine: the way {} has no strategy {}", name(way),
          name(options.strategy));
  require(options.scatter != Scatter::kOwner || options.strategy == CombineStrategy::kAuto ||
              options.strategy == CombineStrategy::kAllToAll,
          "combine: scatter owner has no strategy {}", name(options.strategy));
  if (options.strategy != CombineStrategy::kAuto) return options.strategy;
  return way == WayKind::kNccl ? fastest_over_nccl(shape, options.scatter, ranks)
                               : fastest_on_host();
}

// With n ranks, sending every partial to everyone costs n - 1 times its bytes in one step,
// scattering and gathering about 2 (n - 1) / n times in two, and each row is merged once. Four
// ranks on two cores: 7 KB sent by each rank take 16 us in one step and 25 in two, 50 KB take as
// long either way, 200 KB take 180 and 115. Two ranks, as many bytes either way: 260 KB take 45 us
// in one step and 50 in two, 1 MB takes 169 and 150.
bool goes_by_owners(CombineStrategy strategy, const CombineShape& shape, int ranks) {
  const std::int64_t direct_bytes = ranks > 2 ? 32 * 1024 : 512 * 1024;
  if (strategy == CombineStrategy::kReduceScatter) return true;
  return ranks > 1 && bytes_to_all(shape, ranks) > direct_bytes;
}

}  // namespace kvmesh
