// `kvmesh bench`: measures the operations, beside the limits of the machine.
#pragma once

#include <string>

#include "launch/bench/options.hpp"
#include "launch/cli/output.hpp"

namespace kvmesh::launch {

/// Measures all cases. Rank 0 prints a row for each case, and after each row it writes all numbers
/// so far to the file `json`, so that an interrupted run has its results. If `json` is "-" it
/// writes them to standard output at the end, instead of the rows; if it is "", nowhere. `command`
/// is the command line that the results show. REQUIRES: the same flags on every rank. Returns the
/// exit status.
/// @throws InvalidArgument or AgreedError, the same on all ranks; also kvmesh's errors.
/// Collective.
int run_bench(Mesh& mesh, const bench::Flags& flags, const std::string& command,
              const std::string& json, Output& out);

}  // namespace kvmesh::launch
