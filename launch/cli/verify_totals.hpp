// The results of `kvmesh verify`, and how they are written.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "launch/verify/case_rules.hpp"

namespace kvmesh::launch {

/// The ranks that run the cases.
struct VerifyPlace {
  bool mpi = false;
  int ranks = 1;
  int head_parallel = 1;
  std::string device = "cpu";
  verify::CaseRules rules{};
  int jobs = 1;  ///< processes that run cases side by side, each with all ranks
};

/// Returns the command line that repeats the case of `seed` alone.
std::string command_for(const VerifyPlace& place, std::uint64_t seed);

/// The result of one case, over all ranks.
struct CaseOutcome {
  std::uint64_t seed = 0;
  bool failed = false;
  std::int64_t steps = 0;
  std::int64_t rows = 0;
  double max_error = 0;
  int signal = 0;  ///< signal that interrupted a rank; 0: none
  /// KvCache::kernel_programs of rank 0. May name programs of earlier cases again.
  std::vector<std::string> kernels{};
};

/// An outcome as one line of JSON, and back. @throws nlohmann::json::exception for another text.
std::string line_of(const CaseOutcome& outcome);
CaseOutcome outcome_from(const std::string& line);

/// Totals over all ranks and processes, so far.
struct VerifyTotals {
  std::int64_t cases = 0;
  std::int64_t failed = 0;
  std::int64_t steps = 0;
  std::int64_t rows = 0;
  double max_error = 0;
  double seconds = 0;
  int signal = 0;  ///< signal that interrupted a rank; 0: none
  std::set<std::string> kernels{};

  void add(const CaseOutcome& outcome);
  /// The program's exit status: 0, or 1 if a case failed, or 128 + the signal.
  int status() const;
};

/// "verify: 12 cases, 96 steps, ..."
std::string text_of(const VerifyTotals& totals, const VerifyPlace& place);
/// text_of, with the place and the verdict: the line of the result.
std::string result_of(const VerifyTotals& totals, const VerifyPlace& place);
std::string json_of(const VerifyTotals& totals, const VerifyPlace& place, std::uint64_t seed);

}  // namespace kvmesh::launch
