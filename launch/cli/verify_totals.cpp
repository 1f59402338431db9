#include "launch/cli/verify_totals.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "launch/common/scale_flag.hpp"

namespace kvmesh::launch {

std::string command_for(const VerifyPlace& place, std::uint64_t seed) {
  const auto if_many = [](const char* flag, int count) {
    return count > 1 ? fmt::format(" {} {}", flag, count) : "";
  };
  const std::optional<ScaleKind> scales = place.rules.kv_scales;
  return fmt::format("{}kvmesh verify{}{}{}{} --device {} --seed {} --count 1",
                     place.mpi ? fmt::format("mpirun -np {} ", place.ranks) : "",
                     place.mpi ? "" : if_many("--ranks", place.ranks),
                     if_many("--head-parallel", place.head_parallel),
                     place.rules.reproducible ? " --reproducible" : "",
                     scales ? " --kv-scales " + typed(*scales) : "", place.device, seed);
}

std::string line_of(const CaseOutcome& outcome) {
  return nlohmann::json{{"seed", outcome.seed},       {"failed", outcome.failed},
                        {"steps", outcome.steps},     {"rows", outcome.rows},
                        {"error", outcome.max_error}, {"signal", outcome.signal},
                        {"kernels", outcome.kernels}}
             .dump() +
         "\n";
}

CaseOutcome outcome_from(const std::string& line) {
  const nlohmann::json json = nlohmann::json::parse(line);
  return {.seed = json.at("seed"),
          .failed = json.at("failed"),
          .steps = json.at("steps"),
          .rows = json.at("rows"),
          .max_error = json.at("error"),
          .signal = json.at("signal"),
          .kernels = json.at("kernels").get<std::vector<std::string>>()};
}

void VerifyTotals::add(const CaseOutcome& outcome) {
  ++cases;
  failed += outcome.failed;
  steps += outcome.steps;
  rows += outcome.rows;
  max_error = std::max(max_error, outcome.max_error);
  if (outcome.signal != 0) signal = outcome.signal;
  kernels.insert(outcome.kernels.begin(), outcome.kernels.end());
}

int VerifyTotals::status() const {
  if (failed > 0) return 1;
  return signal == 0 ? 0 : 128 + signal;
}

std::string text_of(const VerifyTotals& totals, const VerifyPlace& place) {
  const std::string kernels =
      totals.kernels.empty() ? "" : fmt::format(", {} kernels", totals.kernels.size());
  return fmt::format("verify: {} cases{}, {} steps, {} rows like float64 to {:.1e}{} in {:.1f} s",
                     totals.cases, kernels, totals.steps, totals.rows, totals.max_error,
                     place.rules.reproducible ? " and like one rank's to the bit" : "",
                     totals.seconds);
}

std::string result_of(const VerifyTotals& totals, const VerifyPlace& place) {
  const std::string found =
      totals.failed == 0 ? std::string("all right") : fmt::format("{} FAILED", totals.failed);
  return fmt::format("{} on {} {} ({}){}: {}{}\n", text_of(totals, place), place.ranks,
                     place.ranks == 1 ? "rank" : "ranks", place.device,
                     place.jobs > 1 ? fmt::format(" in {} processes", place.jobs) : "",
                     totals.signal == 0 ? "" : "interrupted: ", found);
}

std::string json_of(const VerifyTotals& totals, const VerifyPlace& place, std::uint64_t seed) {
  const std::optional<ScaleKind> scales = place.rules.kv_scales;
  const nlohmann::ordered_json json{{"program", "kvmesh verify"},
                                    {"version", KVMESH_VERSION},
                                    {"device", place.device},
                                    {"ranks", place.ranks},
                                    {"kv_parallel", place.ranks / place.head_parallel},
                                    {"head_parallel", place.head_parallel},
                                    {"jobs", place.jobs},
                                    {"seed", seed},
                                    {"reproducible", place.rules.reproducible},
                                    {"kv_scales", scales ? std::string(name(*scales)) : "drawn"},
                                    {"cases", totals.cases},
                                    {"failed", totals.failed},
                                    {"steps", totals.steps},
                                    {"rows", totals.rows},
                                    {"max_error", totals.max_error},
                                    {"kernels", totals.kernels.size()},
                                    {"seconds", totals.seconds},
                                    {"interrupted", totals.signal != 0}};
  return json.dump(1) + "\n";
}

}  // namespace kvmesh::launch
