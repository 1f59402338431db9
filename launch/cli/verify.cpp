#include "launch/cli/verify.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <exception>
#include <random>
#include <span>
#include <string>

#include "launch/verify/random_case.hpp"

namespace kvmesh::launch {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Over all ranks, so far.
struct Totals {
  std::int64_t cases = 0;
  std::int64_t failed = 0;
  std::int64_t steps = 0;
  std::int64_t rows = 0;
  double max_error = 0;
};

// One line on rank 0: rewritten in place on a terminal, else a new one every few seconds. mpirun
// gives its ranks a terminal of its own even where their output goes to a file.
class Progress {
 public:
  explicit Progress(Mesh& mesh)
      : speaks_(mesh.rank().value == 0),
        terminal_(mesh.world().kind() != "mpi" && isatty(STDOUT_FILENO) != 0) {}

  double seconds() const { return seconds_since(start_); }

  void show(const Totals& totals) {
    const double pause = terminal_ ? 0.1 : 5.0;
    if (!speaks_ || seconds_since(shown_) < pause) return;
    shown_ = Clock::now();
    fmt::print("{}verify: {}{}", terminal_ ? "\r" : "", text(totals), terminal_ ? "\033[K" : "\n");
    std::fflush(stdout);
  }

  void finish(const Totals& totals, int ranks, const char* device) {
    if (!speaks_) return;
    const std::string verdict =
        totals.failed == 0 ? std::string("all right") : fmt::format("{} FAILED", totals.failed);
    fmt::print("{}verify: {} on {} {} ({}): {}{}\n", terminal_ ? "\r" : "", text(totals), ranks,
               ranks == 1 ? "rank" : "ranks", device, verdict, terminal_ ? "\033[K" : "");
    std::fflush(stdout);
  }

 private:
  std::string text(const Totals& totals) const {
    return fmt::format("{} cases, {} steps, {} rows like float64 to {:.1e} in {:.1f} s",
                       totals.cases, totals.steps, totals.rows, totals.max_error, seconds());
  }

  bool speaks_, terminal_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point shown_ = start_;
};

std::uint64_t first_seed(Mesh& mesh, const VerifyOptions& options) {
  // Short numbers are easier to type again.
  std::uint64_t seed = options.seed ? *options.seed : std::random_device{}() % 1'000'000'000;
  broadcast(mesh.world(), {0}, std::as_writable_bytes(std::span(&seed, 1)), "verify: seed");
  return seed;
}

const char* device_name(const Mesh& mesh) {
  return mesh.device().kind == DeviceKind::kCuda ? "cuda" : "cpu";
}

void report(Mesh& mesh, std::uint64_t seed, const verify::CaseResult& result) {
  std::string text =
      fmt::format("\nverify: rank {}: {} wrong with seed {} ({})\n", mesh.rank().value,
                  result.findings.failed(), seed, result.description);
  for (const std::string& message : result.findings.messages()) text += "  " + message + "\n";
  fmt::print(stderr, "{}  again: {}\n", text, command_for(mesh, seed));
}

verify::CaseResult run_case(Mesh& mesh, verify::CaseRunner& runner, std::uint64_t seed) {
  try {
    return runner.run(seed);
  } catch (const std::exception& error) {
    fmt::print(stderr, "\nverify: rank {}: seed {} threw: {}\n  again: {}\n", mesh.rank().value,
               seed, error.what(), command_for(mesh, seed));
    throw;
  }
}

void add(Mesh& mesh, const verify::CaseResult& mine, Totals& totals) {
  std::array<double, 2> worst{mine.findings.good() ? 0.0 : 1.0, mine.findings.max_error()};
  auto rows = static_cast<double>(mine.findings.rows());
  all_reduce_max(mesh.world(), worst, "verify: outcome");
  all_reduce_sum(mesh.world(), std::span(&rows, 1), "verify: rows");
  ++totals.cases;
  totals.steps += mine.steps;
  totals.failed += worst[0] > 0;
  totals.max_error = std::max(totals.max_error, worst[1]);
  totals.rows += static_cast<std::int64_t>(rows);
}

// Clocks differ, so rank 0 decides for all.
bool goes_on(Mesh& mesh, const VerifyOptions& options, const Totals& totals, double seconds) {
  std::byte more{totals.cases < options.count || options.count == 0};
  const double limit = options.seconds == 0 && options.count == 0 ? 10 : options.seconds;
  if (limit > 0 && seconds >= limit) more = std::byte{0};
  broadcast(mesh.world(), {0}, std::span(&more, 1), "verify: go on?");
  return more == std::byte{1};
}

}  // namespace

std::string command_for(Mesh& mesh, std::uint64_t seed) {
  const bool mpi = mesh.world().kind() == "mpi";
  const auto if_many = [](const char* flag, int count) {
    return count > 1 ? fmt::format(" {} {}", flag, count) : "";
  };
  return fmt::format("{}kvmesh verify{}{} --device {} --seed {} --count 1",
                     mpi ? fmt::format("mpirun -np {} ", mesh.size()) : "",
                     mpi ? "" : if_many("--ranks", mesh.size()),
                     if_many("--head-parallel", mesh.head_parallel()), device_name(mesh), seed);
}

void add_verify_options(CLI::App& command, VerifyOptions& options) {
  command.add_option("--seconds", options.seconds,
                     "stop after so many seconds; without a count, too, after ten");
  command.add_option("--count", options.count, "stop after so many cases");
  command.add_option("--seed", options.seed,
                     "of the first case, the next has the next number; a failure prints its own");
}

int run_verify(Mesh& mesh, const VerifyOptions& options) {
  if (!(options.seconds >= 0) || options.count < 0) {
    throw InvalidArgument(fmt::format("--seconds {} and --count {}: neither may be negative",
                                      options.seconds, options.count));
  }
  verify::CaseRunner runner(mesh);
  Progress progress(mesh);
  Totals totals;
  std::uint64_t seed = first_seed(mesh, options);
  do {
    const verify::CaseResult result = run_case(mesh, runner, seed);
    if (!result.findings.good()) report(mesh, seed, result);
    add(mesh, result, totals);
    progress.show(totals);
    ++seed;
  } while (goes_on(mesh, options, totals, progress.seconds()));
  progress.finish(totals, mesh.size(), device_name(mesh));
  return totals.failed == 0 ? 0 : 1;
}

int run_verify_on_threads(int ranks, const VerifyOptions& options, const MeshOptions& mesh) {
  int status = 1;
  run_on_threads(
      ranks,
      [&](Mesh& mine) {
        const int result = run_verify(mine, options);
        if (mine.rank().value == 0) status = result;
      },
      mesh);
  return status;
}

}  // namespace kvmesh::launch
