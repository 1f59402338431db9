// `kvmesh inspect`: what an exported sequence is.
#pragma once

#include <string>

#include "kvmesh/sequence_stream.hpp"
#include "launch/cli/output.hpp"

namespace kvmesh::launch {

/// Reads the whole file and checks it. Returns what it holds.
/// @throws StreamError, whose message begins with the path, if it is not good.
SequenceHeader inspect_file(const std::string& file);

/// As inspect_file. Writes what it holds to standard output, and as JSON to
/// `json` ("-": standard output, and nothing else there) if that is not empty. Returns 0.
/// @throws StreamError; OutputError.
int run_inspect(const std::string& file, const std::string& json, Output& out);

}  // namespace kvmesh::launch
