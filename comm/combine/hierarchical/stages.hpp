// The combines of which a hierarchical way is made: among the ranks of a host, and among the ranks
// at one place of all hosts.
#pragma once

#include <memory>

#include "comm/combine/combine_way.hpp"
#include "comm/subset.hpp"
#include "kvmesh/device_group.hpp"

namespace kvmesh {

struct HierarchyStages {
  std::unique_ptr<Subset> inside_comm, across_comm;  // null if the ways use none
  std::unique_ptr<CombineWay> inside;                // within this rank's host
  std::unique_ptr<CombineWay> across;                // between the hosts
  std::unique_ptr<CombineWay> spread;                // within the host again, of merged rows
};

/// Between host memories, over two subsets of `comm`. REQUIRES: `hosts` is a layout of its ranks.
HierarchyStages stages_over_hosts(Communicator& comm, const HostLayout& hosts);

/// Between GPUs, by messages of `group`, which go over its links within a host and over the network
/// between hosts. REQUIRES: `hosts` is a layout of its ranks.
HierarchyStages stages_over_nccl(NcclGroup& group, const HostLayout& hosts);

}  // namespace kvmesh
