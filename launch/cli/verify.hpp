// `kvmesh verify`: compares random cases with float64, on any number of ranks.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "kvmesh/mesh.hpp"
#include "launch/cli/output.hpp"
#include "launch/cli/verify_totals.hpp"

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
  verify::CaseRules rules{};
  /// The number of processes that run cases side by side; unset: see verify_jobs.hpp.
  std::optional<int> jobs{};
  /// This process is one of those: the seeds come on standard input.
  bool worker = false;
};

/// Adds --seconds, --count, --seed, --reproducible, --kv-scales and --jobs to the subcommand.
void add_verify_options(CLI::App& command, VerifyOptions& options);

/// A mesh, as the results name it.
VerifyPlace place_of(Mesh& mesh, const verify::CaseRules& rules = {});

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

/// Runs the cases of the seeds that rank 0's `next` returns, until it returns none. `done` gets
/// each outcome on every rank, the same one. Wrong numbers are printed as run_verify says.
/// @throws kvmesh's errors, after it has printed the case. Collective.
void run_cases(Mesh& mesh, const verify::CaseRules& rules,
               const std::function<std::optional<std::uint64_t>()>& next,
               const std::function<void(const CaseOutcome&)>& done);

/// Which seeds follow one another, and when they end.
class SeedRange {
 public:
  /// @throws InvalidArgument for negative limits.
  explicit SeedRange(const VerifyOptions& options);
  /// The next seed; none after `totals.signal`, or past a limit. The first call always has one.
  std::optional<std::uint64_t> next(const VerifyTotals& totals);
  std::uint64_t first() const { return first_; }

 private:
  std::uint64_t first_;
  std::int64_t given_ = 0;
  std::int64_t count_;
  double seconds_;
};

/// The first SIGINT or SIGTERM to come is then returned by `interrupt`, and the second one ends the
/// process.
void catch_interrupts();
int interrupt();

/// Writes the total. @throws OutputError.
void write_result(const VerifyTotals& totals, const VerifyPlace& place, std::uint64_t first,
                  const std::string& json, Output& out);

}  // namespace kvmesh::launch
