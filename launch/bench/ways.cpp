#include "launch/bench/ways.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace kvmesh::bench {
namespace {

const std::array kWays{
    Way{"auto", std::nullopt, CombineStrategy::kAuto},
    Way{"host", WayKind::kHost, CombineStrategy::kAuto},
    Way{"staged", WayKind::kStaged, CombineStrategy::kAuto},
    Way{"nccl", WayKind::kNccl, CombineStrategy::kAuto},
    Way{"peer", WayKind::kPeer, CombineStrategy::kAuto},
    Way{"hierarchical", WayKind::kHierarchical, CombineStrategy::kAuto},
    Way{"recipe", WayKind::kNccl, CombineStrategy::kReduceScatter},
};
static_assert(kWays.size() == kWayKinds + 2, "every way, auto and recipe");

bool has_way(Mesh& mesh, WayKind kind) {
  const bool gpu = mesh.device().kind == DeviceKind::kCuda;
  switch (kind) {
    case WayKind::kHost:
      return !gpu;
    case WayKind::kStaged:
      return gpu;
    case WayKind::kNccl:
      return mesh.device_group().nccl() != nullptr;
    case WayKind::kPeer:
      return mesh.device_group().peer_window() != nullptr;
    case WayKind::kHierarchical:
      return mesh.device_group().hosts().is_hierarchy() &&
             (!gpu || mesh.device_group().nccl() != nullptr);
  }
  return false;
}

}  // namespace

std::vector<Way> ways_of(const Flags& flags, Mesh& mesh) {
  std::vector<Way> ways;
  for (const std::string& asked : flags.ways) {
    const auto* way = std::ranges::find(kWays, asked, &Way::name);
    if (way == kWays.end()) {
      throw InvalidArgument(fmt::format(
          "--ways '{}' is none of auto, host, staged, nccl, peer, hierarchical, recipe", asked));
    }
    if (way->kind && !has_way(mesh, *way->kind)) {
      throw InvalidArgument(fmt::format("--ways {}: these ranks do not have it", asked));
    }
    ways.push_back(*way);
  }
  if (!ways.empty() || mesh.device().kind != DeviceKind::kCuda || mesh.kv_parallel() == 1) {
    return ways;
  }
  std::ranges::copy_if(kWays, std::back_inserter(ways),
                       [&](const Way& way) { return way.kind && has_way(mesh, *way.kind); });
  return ways;
}

}  // namespace kvmesh::bench
