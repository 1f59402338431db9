// `kvmesh verify` in several processes, each of which runs cases of its own.
//
//   this process                                   workers: kvmesh verify --worker
//     seed 7 ──────────────────────────────────────► runs the case of seed 7 on all its ranks
//     outcome ◄───────────────────────────────────── one line of JSON
//
// A GPU's kernels are compiled by the process that needs them, one after another; so cases side by
// side use all cores.
#pragma once

#include <string>
#include <vector>

#include "launch/cli/verify.hpp"

namespace kvmesh::launch {

/// Returns the number of processes: --jobs, else on GPUs as many as this process may use cores, at
/// most 16, and else 1; never more than cases.
/// @throws InvalidArgument if --jobs wants several and a launcher has started several ranks.
int verify_jobs(const VerifyOptions& options, const std::string& device);

/// Returns the command that starts a worker: this program, with `threads` threads per rank.
std::vector<std::string> worker_command(const VerifyPlace& place, int threads, int timeout_s);

/// Runs `place.jobs` workers, each started by `command`, and writes the result as run_verify does.
/// A worker that ends by itself counts as a failure of the case that it ran, and ends the run after
/// the others' cases; so does one that a signal has stopped for `timeout_s` seconds, which is
/// killed. SIGINT and SIGTERM stop the run in the same way. Returns run_verify's exit status; that
/// of the first worker if it ends before it has begun: it has printed why. Blocks.
int run_verify_jobs(const std::vector<std::string>& command, const VerifyPlace& place,
                    const VerifyOptions& options, int timeout_s, const std::string& json,
                    Output& out);

/// A worker: runs the cases whose seeds come on standard input, on `ranks` threads of this process
/// (0: on one rank), and writes each outcome to standard output. Ends with its input, and with the
/// process that started it.
int run_verify_worker(int ranks, const VerifyOptions& options, const MeshOptions& mesh,
                      Output& out);

}  // namespace kvmesh::launch
