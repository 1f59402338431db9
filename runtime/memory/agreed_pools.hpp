// How the ranks of a mesh come to pools of one size.
#pragma once

#include "kvmesh/mesh.hpp"
#include "runtime/memory/pool_storage.hpp"

namespace kvmesh {

/// This rank's pools on its device; made to be mapped if one of its kv ranks is another process of
/// this machine. Collective over the mesh's world. @throws OutOfMemory, on every rank, if the
/// device of one has not so much memory.
PoolStorage agreed_pools(Mesh& mesh, const LocalShape& shape, int layers);

}  // namespace kvmesh
