#include "launch/cli/verify.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <span>
#include <string>

#include "launch/cli/agree.hpp"
#include "launch/cli/clock.hpp"
#include "launch/common/scale_flag.hpp"
#include "launch/verify/random_case.hpp"

namespace kvmesh::launch {
namespace {

// The signal that requests the end, if one has come. Static, because a handler can reach no other
// memory.
std::atomic<int> caught = 0;
static_assert(std::atomic<int>::is_always_lock_free);

void report(const VerifyPlace& place, Rank rank, std::uint64_t seed,
            const verify::CaseResult& result) {
  std::string text = fmt::format("\nverify: rank {}: {} wrong with seed {} ({})\n", rank.value,
                                 result.findings.failed(), seed, result.description);
  for (const std::string& message : result.findings.messages()) text += "  " + message + "\n";
  fmt::print(stderr, "{}  again: {}\n", text, command_for(place, seed));
}

verify::CaseResult run_case(const VerifyPlace& place, Rank rank, verify::CaseRunner& runner,
                            std::uint64_t seed) {
  try {
    return runner.run(seed);
  } catch (const std::exception& error) {
    fmt::print(stderr, "\nverify: rank {}: seed {} threw: {}\n  again: {}\n", rank.value, seed,
               error.what(), command_for(place, seed));
    throw;
  }
}

CaseOutcome outcome_of(Mesh& mesh, std::uint64_t seed, const verify::CaseResult& mine) {
  std::array<double, 3> worst{mine.findings.good() ? 0.0 : 1.0, mine.findings.max_error(),
                              static_cast<double>(interrupt())};
  auto rows = static_cast<double>(mine.findings.rows());
  all_reduce_max(mesh.world(), worst, "verify: outcome");
  all_reduce_sum(mesh.world(), std::span(&rows, 1), "verify: rows");
  return {.seed = seed,
          .failed = worst[0] > 0,
          .steps = mine.steps,
          .rows = static_cast<std::int64_t>(rows),
          .max_error = worst[1],
          .signal = static_cast<int>(worst[2]),
          .kernels = mine.kernels};
}

// Rank 0 decides for all: clocks differ, and it alone reads the seeds.
std::optional<std::uint64_t> next_of_rank_0(
    Mesh& mesh, const std::function<std::optional<std::uint64_t>()>& next) {
  std::array<std::uint64_t, 2> given{};  // whether there is a seed, and the seed
  if (mesh.rank().value == 0) {
    const std::optional<std::uint64_t> seed = next();
    given = {seed.has_value(), seed.value_or(0)};
  }
  broadcast(mesh.world(), {0}, std::as_writable_bytes(std::span(given)), "verify: next seed");
  return given[0] == 0 ? std::nullopt : std::optional(given[1]);
}

// Short numbers are easier to type.
std::uint64_t random_seed() { return std::random_device{}() % 1'000'000'000; }

}  // namespace

void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = [](int signal) { caught = signal; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  for (const int signal : {SIGINT, SIGTERM}) ::sigaction(signal, &action, nullptr);
}

int interrupt() { return caught; }

VerifyPlace place_of(Mesh& mesh, const verify::CaseRules& rules) {
  return {.mpi = mesh.world().kind() == "mpi",
          .ranks = mesh.size(),
          .head_parallel = mesh.head_parallel(),
          .device = mesh.device().kind == DeviceKind::kCuda ? "cuda" : "cpu",
          .rules = rules};
}

void add_verify_options(CLI::App& command, VerifyOptions& options) {
  const CLI::Validator above_zero(
      [](const std::string& text) {
        return std::atof(text.c_str()) > 0 ? "" : fmt::format("{} is not above 0", text);
      },
      "");
  command
      .add_option("--seconds", options.seconds,
                  "stop after this many seconds; default without --count: ten")
      ->check(above_zero);
  command.add_option("--count", options.count, "stop after this many cases")->check(above_zero);
  command.add_option(
      "--seed", options.seed,
      "seed of the first case; each later case has the next number; a failure prints its seed");
  command.add_flag("--reproducible", options.rules.reproducible,
                   "also compare every bit with that of one rank");
  command.add_option_function<std::string>(
      "--kv-scales",
      [&options](const std::string& text) { options.rules.kv_scales = scale_kind_from(text); },
      "draw float8 pages alone, with scales of this kind: per_token_and_head, per_head, "
      "per_tensor");
  command
      .add_option("--jobs", options.jobs,
                  "processes that run cases side by side; default: on GPUs one per core, at most "
                  "16, since each compiles kernels; 1 on CPUs, for one case, or under a launcher")
      ->check(CLI::Range(1, 1024));
  command.add_flag("--worker", options.worker)->group("");  // hidden: for --jobs alone
}

SeedRange::SeedRange(const VerifyOptions& options)
    : first_(options.seed ? *options.seed : random_seed()),
      count_(options.count),
      seconds_(options.seconds == 0 && options.count == 0 ? 10 : options.seconds) {
  if (!(options.seconds >= 0) || options.count < 0) {
    throw InvalidArgument(fmt::format("--seconds {} and --count {}: neither may be negative",
                                      options.seconds, options.count));
  }
}

std::optional<std::uint64_t> SeedRange::next(const VerifyTotals& totals) {
  const bool ends = totals.signal != 0 || (count_ > 0 && given_ >= count_) ||
                    (seconds_ > 0 && totals.seconds >= seconds_);
  if (ends && given_ > 0) return std::nullopt;
  return first_ + static_cast<std::uint64_t>(given_++);
}

void write_result(const VerifyTotals& totals, const VerifyPlace& place, std::uint64_t first,
                  const std::string& json, Output& out) {
  if (json != "-") out.put(result_of(totals, place));
  if (!json.empty()) out.write(json, json_of(totals, place, first));
}

void run_cases(Mesh& mesh, const verify::CaseRules& rules,
               const std::function<std::optional<std::uint64_t>()>& next,
               const std::function<void(const CaseOutcome&)>& done) {
  const VerifyPlace place = place_of(mesh, rules);
  verify::CaseRunner runner(mesh, rules);
  while (const std::optional<std::uint64_t> seed = next_of_rank_0(mesh, next)) {
    const verify::CaseResult result = run_case(place, mesh.rank(), runner, *seed);
    if (!result.findings.good()) report(place, mesh.rank(), *seed, result);
    done(outcome_of(mesh, *seed, result));
  }
}

int run_verify(Mesh& mesh, const VerifyOptions& options, const std::string& json, Output& out) {
  const VerifyPlace place = place_of(mesh, options.rules);
  SeedRange seeds(options);
  catch_interrupts();
  const Clock::time_point start = Clock::now();
  VerifyTotals totals;
  run_cases(
      mesh, options.rules, [&] { return seeds.next(totals); },
      [&](const CaseOutcome& outcome) {
        totals.add(outcome);
        totals.seconds = seconds_since(start);
        if (mesh.rank().value == 0) out.progress([&] { return text_of(totals, place); });
      });
  agree(mesh.world(), [&] {
    if (mesh.rank().value == 0) write_result(totals, place, seeds.first(), json, out);
  });
  return totals.status();
}

int run_verify_on_threads(int ranks, const VerifyOptions& options, const MeshOptions& mesh,
                          const std::string& json, Output& out) {
  int status = 1;
  run_loopback(ranks, [&](Communicator& comm) {
    Mesh mine(comm, mesh);
    const int result = run_verify(mine, options, json, out);
    if (mine.rank().value == 0) status = result;
  });
  return status;
}

}  // namespace kvmesh::launch
