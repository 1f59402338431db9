// How the ranks of a mesh come to pools of one size. All of it is collective over the mesh's world.
#pragma once

#include "kvmesh/kv_cache.hpp"
#include "runtime/memory/pool_storage.hpp"

namespace kvmesh {

/// The pages that each rank gets: the smallest number that a rank's options come to.
/// @throws InvalidArgument or OutOfMemory, on every rank, if a rank has not room for one.
std::int64_t agreed_pages(Mesh& mesh, const CacheOptions& options, const LocalShape& shape);

/// This rank's pools on its device; made to be mapped if one of its kv ranks is another process of
/// this machine. @throws OutOfMemory, on every rank, if the device of one has not so much memory.
PoolStorage agreed_pools(Mesh& mesh, const LocalShape& shape, int layers);

}  // namespace kvmesh
