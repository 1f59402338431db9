// The way over NCCL: see DeviceCombiner in nccl.hpp for its strategies.
#pragma once

#include <memory>

#include "comm/combine/combine_way.hpp"
#include "kvmesh/nccl.hpp"

namespace kvmesh {

/// The group may be moved, and is not outlived. @throws Unsupported in a build without NCCL.
std::unique_ptr<CombineWay> make_nccl_way(NcclGroup& group);

}  // namespace kvmesh
