// `kvmesh inspect`: what an exported sequence is.
#pragma once

#include <string>

#include "launch/cli/output.hpp"

namespace kvmesh::launch {

/// Reads the whole file and checks it. Writes what it holds to standard output, and as JSON to
/// `json` ("-": standard output, and nothing else there) if that is not empty. Returns 0.
/// @throws StreamError if it is not good; OutputError.
int run_inspect(const std::string& file, const std::string& json, Output& out);

}  // namespace kvmesh::launch
