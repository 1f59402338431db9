// The combines that the hierarchical way supports.
#pragma once

#include "comm/combine/rows.hpp"
#include "kvmesh/device_group.hpp"

namespace kvmesh {

/// Returns whether the ranks lie on several hosts and the places of a host can divide the rows:
/// rows go to all ranks, or each rank gets an equal number of heads.
inline bool takes_hosts(const HostLayout& hosts, const CombineShape& shape, Scatter scatter) {
  if (!hosts.is_hierarchy()) return false;
  return scatter == Scatter::kAll ||
         (scatter == Scatter::kHeads && shape.heads % (hosts.hosts * hosts.per_host) == 0);
}

}  // namespace kvmesh
