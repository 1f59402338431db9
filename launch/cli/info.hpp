// `kvmesh info`: the features of this build and this machine.
#pragma once

#include <string>

#include "kvmesh/mesh.hpp"
#include "launch/cli/output.hpp"

namespace kvmesh::launch {

/// Collective. Rank 0 writes it as several lines to standard output, and as JSON to `json` ("-":
/// standard output, instead of the lines) if that is not empty. Returns the exit status.
/// @throws AgreedError.
int run_info(Mesh& mesh, const std::string& json, Output& out);

}  // namespace kvmesh::launch
