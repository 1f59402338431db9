// `kvmesh bench`: how fast the operations are, and how near to what the machine can do.
#pragma once

#include <string>

#include "launch/bench/options.hpp"
#include "launch/cli/output.hpp"

namespace kvmesh::launch {

/// Collective; every rank passes the same flags. Rank 0 shows a row for each case as it is measured
/// and writes all numbers to the file `json`, again after every row: what is cut off is there. With
/// "-" it writes them to standard output, once and instead of the rows; with "" nowhere.
/// `command` is what to write down as the command line. Returns the exit status.
/// @throws InvalidArgument, AgreedError, the same on all ranks; or what kvmesh threw.
int run_bench(Mesh& mesh, const bench::Flags& flags, const std::string& command,
              const std::string& json, Output& out);

}  // namespace kvmesh::launch
