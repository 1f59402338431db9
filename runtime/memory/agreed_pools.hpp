// Allocates pools of equal size on all ranks of a mesh.
#pragma once

#include "kvmesh/mesh.hpp"
#include "runtime/memory/pool_storage.hpp"

namespace kvmesh {

/// Allocates this rank's pools on its device; of pools that may grow, memory for the first
/// pages[group] pages (empty: for all). Other processes can map them if one of its kv ranks
/// is another process on this machine.
/// @throws OutOfMemory, on every rank, if one rank's device has not enough memory.
/// Collective over the mesh's world.
PoolStorage agreed_pools(Mesh& mesh, const PoolLayout& layout,
                         std::span<const std::int64_t> pages = {});

}  // namespace kvmesh
