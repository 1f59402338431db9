// The combines of which a hierarchical way is made: among the ranks of a host, and among the ranks
// at one place of all hosts.
#pragma once

#include <memory>

#include "comm/combine/combine_way.hpp"
#include "comm/common/subset.hpp"
#include "kvmesh/device_group.hpp"

namespace kvmesh {

class PeerWindow;

struct HierarchyStages {
  std::unique_ptr<Subset> inside_comm, across_comm;  // null if the ways use none
  std::unique_ptr<CombineWay> inside;                // within this rank's host
  std::unique_ptr<CombineWay> across;                // between the hosts
  std::unique_ptr<CombineWay> spread;                // within the host again, of merged rows
  /// Whether `inside` may end without all rows when a rank is late, as the peer way does.
  bool may_give_up = false;
};

/// Between host memories, over two subsets of `comm`. REQUIRES: `hosts` is a layout of its ranks.
HierarchyStages stages_over_hosts(Communicator& comm, const HostLayout& hosts);

/// Between GPUs: within a host by stores into its ranks' windows, if there are some and rows fit
/// into them, else by messages of `group`; between hosts by messages of `group`. `window`: of the
/// ranks of this rank's host, or null. REQUIRES: `hosts` is a layout of the ranks of `group`.
HierarchyStages stages_over_gpus(NcclGroup& group, PeerWindow* window, const HostLayout& hosts);

}  // namespace kvmesh
