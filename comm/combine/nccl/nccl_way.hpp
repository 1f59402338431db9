// The way over NCCL: see DeviceCombiner in nccl.hpp for its strategies.
#pragma once

#include <memory>
#include <vector>

#include "comm/combine/combine_way.hpp"
#include "kvmesh/nccl.hpp"

namespace kvmesh {

/// The group may be moved, and is not outlived. `members`: the ranks of the group that combine, of
/// which this rank is one; the way's rank i is members[i], and kAllToAll its only strategy. Empty:
/// all of the group. @throws Unsupported in a build without NCCL.
std::unique_ptr<CombineWay> make_nccl_way(NcclGroup& group, std::vector<Rank> members = {});

}  // namespace kvmesh
