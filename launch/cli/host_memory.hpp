// Checks that the pools of all ranks of a machine fit into its memory together.
#pragma once

#include "kvmesh/mesh.hpp"

namespace kvmesh::launch {

/// Checks pools on the CPU before they are made, because the system grants more memory than it has
/// and kills a process that uses it. `pool_bytes` is the size of this rank's pools.
/// @throws AgreedError on all ranks if the pools of a machine's ranks exceed the memory that is
/// available there.
/// Collective.
void check_host_memory(Mesh& mesh, double pool_bytes);

}  // namespace kvmesh::launch
