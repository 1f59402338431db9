// Is there room on this machine for what its ranks are about to ask for together?
#pragma once

#include "kvmesh/mesh.hpp"

namespace kvmesh::launch {

/// Collective. Of pools on the CPU: the system promises memory that it does not have, and ends the
/// process that uses it. `pool_bytes` is this rank's.
/// @throws AgreedError, on all ranks, if the pools of a machine's ranks exceed what is available
/// there.
void check_host_memory(Mesh& mesh, double pool_bytes);

}  // namespace kvmesh::launch
