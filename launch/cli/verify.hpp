// `kvmesh verify`: compares random cases with float64, on any number of ranks.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "kvmesh/mesh.hpp"
#include "launch/cli/output.hpp"

namespace CLI {
class App;
}

namespace kvmesh::launch {

struct VerifyOptions {
  /// Verify stops after this many seconds or this many cases, whichever comes first. 0 sets no
  /// limit; if both are 0 it stops after ten seconds.
  double seconds = 0;
  std::int64_t count = 0;
  /// The seed of the first case; each later case has the next number. Unset: a random seed.
  std::optional<std::uint64_t> seed{};
  /// Reproducible caches: every bit is compared with that of one rank.
  bool reproducible = false;
};

/// Adds --seconds, --count, --seed and --reproducible to the subcommand.
void add_verify_options(CLI::App& command, VerifyOptions& options);

/// Returns the command line that repeats the case of `seed` alone, on a mesh like this one.
std::string command_for(Mesh& mesh, std::uint64_t seed, bool reproducible = false);

/// Runs random cases. Rank 0 shows the progress and writes the total to standard output; if `json`
/// is not empty also as JSON to that file, or to standard output alone if it is "-". A rank that
/// finds a wrong number prints it to standard error, with the command that repeats the case. SIGINT
/// or SIGTERM on any rank stops all ranks after the current case, with the total so far. REQUIRES:
/// the same options on every rank. Returns the exit status, the same on all ranks: 0, or 1 if a
/// number was wrong, or 128 + the signal.
/// @throws InvalidArgument or AgreedError, the same on all ranks; also kvmesh's errors, after it
/// has printed the case. Collective.
int run_verify(Mesh& mesh, const VerifyOptions& options, const std::string& json, Output& out);

/// As run_verify, on `ranks` threads of this process.
int run_verify_on_threads(int ranks, const VerifyOptions& options, const MeshOptions& mesh,
                          const std::string& json, Output& out);

}  // namespace kvmesh::launch
