// Makes the ways of one group of ranks.
#pragma once

#include <memory>

#include "comm/combine/choice/choose_way.hpp"
#include "comm/combine/combine_way.hpp"
#include "kvmesh/device_group.hpp"

namespace kvmesh {

class GatherWay;
class RowExchange;
struct HierarchyStages;

/// Returns the way that KVMESH_COMBINE_WAY names; empty if it is not set, empty or "auto".
/// @throws InvalidArgument if it names no way.
std::optional<WayKind> way_of_environment();

/// The resources that the ways of a group share. Ways that go over the host share their buffers, so
/// ways run one after the other. Does not outlive the group.
class CombineWays {
 public:
  /// @throws InvalidArgument if KVMESH_COMBINE_WAY names no way.
  explicit CombineWays(DeviceGroup& group);

  CombineMeans means() const;
  /// Sends nothing. REQUIRES: `kind` is a choice for `means()`.
  std::unique_ptr<CombineWay> make(WayKind kind);
  /// The same for a query gather. REQUIRES: `kind` is a choice of choose_gather_way.
  std::unique_ptr<GatherWay> make_gather(WayKind kind);

 private:
  HierarchyStages hierarchy_stages();

  DeviceGroup* group_;
  std::optional<WayKind> preferred_;
  std::shared_ptr<RowExchange> rows_;  // of the ways that go over the host
};

}  // namespace kvmesh
