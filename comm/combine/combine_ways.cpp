#include "comm/combine/combine_ways.hpp"

#include "comm/combine/host/host_way.hpp"
#include "comm/combine/nccl/nccl_way.hpp"
#include "comm/combine/staged/staged_way.hpp"

namespace kvmesh {

CombineWays::CombineWays(DeviceGroup& group)
    : group_(&group), rows_(std::make_shared<RowExchange>(group.comm())) {}

CombineMeans CombineWays::means() const {
  return {.ranks = group_->comm().size(),
          .device = group_->device().kind,
          .has_nccl = group_->nccl() != nullptr};
}

std::unique_ptr<CombineWay> CombineWays::make(WayKind kind) {
  switch (kind) {
    case WayKind::kHost:
      return std::make_unique<HostWay>(rows_);
    case WayKind::kStaged:
      return std::make_unique<StagedWay>(*group_, rows_);
    case WayKind::kNccl:
      return make_nccl_way(*group_->nccl());
  }
  return nullptr;
}

}  // namespace kvmesh
