// Which combines the hierarchical way takes.
#pragma once

#include "comm/combine/rows.hpp"
#include "kvmesh/device_group.hpp"

namespace kvmesh {

/// Whether the ranks lie on several hosts, and the places of a host can divide the rows: rows to
/// all, or to heads that all ranks get as many of.
inline bool takes_hosts(const HostLayout& hosts, const CombineShape& shape, Scatter scatter) {
  if (!hosts.is_hierarchy()) return false;
  return scatter == Scatter::kAll ||
         (scatter == Scatter::kHeads && shape.heads % (hosts.hosts * hosts.per_host) == 0);
}

}  // namespace kvmesh
