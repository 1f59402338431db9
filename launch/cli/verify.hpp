// `kvmesh verify`: random cases against float64, on whatever ranks there are.
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
  /// Stop after so many seconds, or so many cases, whichever comes first. 0: no such limit; if both
  /// are 0, ten seconds.
  double seconds = 0;
  std::int64_t count = 0;
  /// Of the first case; each later one has the next number. Unset: another one every time.
  std::optional<std::uint64_t> seed{};
  /// Reproducible caches: every bit is compared with that of one rank.
  bool reproducible = false;
};

/// Adds --seconds, --count, --seed and --reproducible to the subcommand.
void add_verify_options(CLI::App& command, VerifyOptions& options);

/// What to type to run the case of `seed` again, alone, on such a mesh.
std::string command_for(Mesh& mesh, std::uint64_t seed, bool reproducible = false);

/// Collective; every rank passes the same options. Rank 0 shows how far it is, and writes what came
/// out to standard output, and as JSON to `json` ("-": standard output, and nothing else there) if
/// that is not empty; a rank that finds a wrong number says so on standard error, with the command
/// that runs the case again. SIGINT or SIGTERM at any rank ends it after the case in progress, with
/// the total so far. Returns the exit status, the same on all ranks: 0, or 1 if a number was wrong,
/// or 128 + the signal.
/// @throws InvalidArgument or AgreedError, the same on all ranks; or, having named the case, what
/// kvmesh threw.
int run_verify(Mesh& mesh, const VerifyOptions& options, const std::string& json, Output& out);

/// The same on `ranks` threads of this process.
int run_verify_on_threads(int ranks, const VerifyOptions& options, const MeshOptions& mesh,
                          const std::string& json, Output& out);

}  // namespace kvmesh::launch
