#include "comm/combine/choice/combine_ways.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <string>
#include <string_view>

#include "comm/combine/gather/gather_way.hpp"
#include "comm/combine/hierarchical/hierarchical_way.hpp"
#include "comm/combine/hierarchical/stages.hpp"
#include "comm/combine/host/host_way.hpp"
#include "comm/combine/nccl/nccl_way.hpp"
#include "comm/combine/peer/peer_way.hpp"
#include "comm/combine/staged/staged_way.hpp"

namespace kvmesh {

std::optional<WayKind> way_of_environment() {
  const char* given = std::getenv("KVMESH_COMBINE_WAY");
  if (given == nullptr || *given == '\0' || std::string_view(given) == "auto") return std::nullopt;
  std::string names = "auto";
  for (int i = 0; i < kWayKinds; ++i) {
    const auto kind = static_cast<WayKind>(i);
    if (name(kind) == given) return kind;
    names += fmt::format(", {}", name(kind));
  }
  throw InvalidArgument(fmt::format("KVMESH_COMBINE_WAY={} is none of {}", given, names));
}

CombineWays::CombineWays(DeviceGroup& group)
    : group_(&group),
      preferred_(way_of_environment()),
      rows_(std::make_shared<RowExchange>(group.comm())) {}

CombineMeans CombineWays::means() const {
  const PeerWindow* window = group_->peer_window();
  CombineMeans means{.ranks = group_->comm().size(),
                     .device = group_->device().kind,
                     .has_nccl = group_->nccl() != nullptr,
                     .hosts = group_->hosts(),
                     .preferred = preferred_,
                     .table = group_->way_table()};
  if (window != nullptr) {
    means.peer = window->room();
    means.shares_gpus = window->shares_gpus();
  }
  return means;
}

std::unique_ptr<CombineWay> CombineWays::make(WayKind kind) {
  switch (kind) {
    case WayKind::kHost:
      return std::make_unique<HostWay>(rows_);
    case WayKind::kStaged:
      return std::make_unique<StagedWay>(*group_, rows_);
    case WayKind::kNccl:
      return make_nccl_way(*group_->nccl());
    case WayKind::kPeer:
      return make_peer_way(*group_->peer_window());
    case WayKind::kHierarchical:
      return std::make_unique<HierarchicalWay>(group_->comm().rank(), group_->hosts(),
                                               group_->device(), hierarchy_stages());
  }
  return nullptr;
}

std::unique_ptr<GatherWay> CombineWays::make_gather(WayKind kind) {
  switch (kind) {
    case WayKind::kHost:
      return make_host_gather(rows_);
    case WayKind::kStaged:
      return make_staged_gather(*group_, rows_);
    case WayKind::kNccl:
      return make_nccl_gather(*group_->nccl());
    case WayKind::kPeer:
      return make_peer_gather(*group_->peer_window());
    case WayKind::kHierarchical:
      break;  // it has no step within hosts
  }
  return nullptr;
}

HierarchyStages CombineWays::hierarchy_stages() {
  const bool is_gpu = group_->device().kind == DeviceKind::kCuda;
  return is_gpu ? stages_over_gpus(*group_->nccl(), group_->host_window(), group_->hosts())
                : stages_over_hosts(group_->comm(), group_->hosts());
}

}  // namespace kvmesh
