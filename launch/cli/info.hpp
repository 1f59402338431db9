// `kvmesh info`: what this build and this machine have.
#pragma once

#include <string>

#include "kvmesh/mesh.hpp"

namespace kvmesh::launch {

/// Several lines for rank 0 to print.
std::string build_and_machine_info(Mesh& mesh);

}  // namespace kvmesh::launch
