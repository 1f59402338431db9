#include "launch/cli/verify.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <exception>
#include <nlohmann/json.hpp>
#include <random>
#include <span>
#include <string>

#include "launch/cli/agree.hpp"
#include "launch/cli/world_ranks.hpp"
#include "launch/verify/random_case.hpp"

namespace kvmesh::launch {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Totals over all ranks, so far.
struct Totals {
  std::int64_t cases = 0;
  std::int64_t failed = 0;
  std::int64_t steps = 0;
  std::int64_t rows = 0;
  double max_error = 0;
  double seconds = 0;
  int signal = 0;  // signal that interrupted a rank; 0: none
};

// The signal that requests the end, if one has come. Static, because a handler can reach no other
// memory.
// memory.
std::atomic<int> interrupt = 0;
static_assert(std::atomic<int>::is_always_lock_free);

// The first Ctrl-C, or SIGTERM, ends the run after its case; the second one ends the process.
void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = [](int signal) { interrupt = signal; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  for (const int signal : {SIGINT, SIGTERM}) ::sigaction(signal, &action, nullptr);
}

std::string text_of(const Totals& totals, bool reproducible) {
  return fmt::format("verify: {} cases, {} steps, {} rows like float64 to {:.1e}{} in {:.1f} s",
                     totals.cases, totals.steps, totals.rows, totals.max_error,
                     reproducible ? " and like one rank's to the bit" : "", totals.seconds);
}

std::string verdict_of(const Totals& totals) {
  const std::string found =
      totals.failed == 0 ? std::string("all right") : fmt::format("{} FAILED", totals.failed);
  return totals.signal == 0 ? found : "interrupted: " + found;
}

std::uint64_t first_seed(Mesh& mesh, const VerifyOptions& options) {
  // Short numbers are easier to type.
  std::uint64_t seed = options.seed ? *options.seed : std::random_device{}() % 1'000'000'000;
  broadcast(mesh.world(), {0}, std::as_writable_bytes(std::span(&seed, 1)), "verify: seed");
  return seed;
}

const char* device_name(const Mesh& mesh) {
  return mesh.device().kind == DeviceKind::kCuda ? "cuda" : "cpu";
}

void report(Mesh& mesh, std::uint64_t seed, bool reproducible, const verify::CaseResult& result) {
  std::string text =
      fmt::format("\nverify: rank {}: {} wrong with seed {} ({})\n", mesh.rank().value,
                  result.findings.failed(), seed, result.description);
  for (const std::string& message : result.findings.messages()) text += "  " + message + "\n";
  fmt::print(stderr, "{}  again: {}\n", text, command_for(mesh, seed, reproducible));
}

verify::CaseResult run_case(Mesh& mesh, verify::CaseRunner& runner, std::uint64_t seed,
                            bool reproducible) {
  try {
    return runner.run(seed);
  } catch (const std::exception& error) {
    fmt::print(stderr, "\nverify: rank {}: seed {} threw: {}\n  again: {}\n", mesh.rank().value,
               seed, error.what(), command_for(mesh, seed, reproducible));
    throw;
  }
}

void add(Mesh& mesh, const verify::CaseResult& mine, Totals& totals) {
  std::array<double, 3> worst{mine.findings.good() ? 0.0 : 1.0, mine.findings.max_error(),
                              static_cast<double>(interrupt.load())};
  auto rows = static_cast<double>(mine.findings.rows());
  all_reduce_max(mesh.world(), worst, "verify: outcome");
  all_reduce_sum(mesh.world(), std::span(&rows, 1), "verify: rows");
  ++totals.cases;
  totals.steps += mine.steps;
  totals.failed += worst[0] > 0;
  totals.max_error = std::max(totals.max_error, worst[1]);
  totals.signal = static_cast<int>(worst[2]);
  totals.rows += static_cast<std::int64_t>(rows);
}

// Clocks differ, so rank 0 decides for all.
bool goes_on(Mesh& mesh, const VerifyOptions& options, const Totals& totals) {
  std::byte more{totals.cases < options.count || options.count == 0};
  const double limit = options.seconds == 0 && options.count == 0 ? 10 : options.seconds;
  if (limit > 0 && totals.seconds >= limit) more = std::byte{0};
  if (totals.signal != 0) more = std::byte{0};
  broadcast(mesh.world(), {0}, std::span(&more, 1), "verify: go on?");
  return more == std::byte{1};
}

std::string as_json(Mesh& mesh, std::uint64_t seed, bool reproducible, const Totals& totals) {
  const nlohmann::ordered_json json{{"program", "kvmesh verify"},
                                    {"version", KVMESH_VERSION},
                                    {"device", device_name(mesh)},
                                    {"ranks", mesh.size()},
                                    {"kv_parallel", mesh.kv_parallel()},
                                    {"head_parallel", mesh.head_parallel()},
                                    {"seed", seed},
                                    {"reproducible", reproducible},
                                    {"cases", totals.cases},
                                    {"failed", totals.failed},
                                    {"steps", totals.steps},
                                    {"rows", totals.rows},
                                    {"max_error", totals.max_error},
                                    {"seconds", totals.seconds},
                                    {"interrupted", totals.signal != 0}};
  return json.dump(1) + "\n";
}

// Rank 0 prints the total.
void finish(Mesh& mesh, std::uint64_t seed, bool reproducible, const Totals& totals,
            const std::string& json, Output& out) {
  agree(mesh.world(), [&] {
    if (mesh.rank().value != 0) return;
    if (json != "-") {
      out.put(fmt::format("{} on {} {} ({}): {}\n", text_of(totals, reproducible), mesh.size(),
                          mesh.size() == 1 ? "rank" : "ranks", device_name(mesh),
                          verdict_of(totals)));
    }
    if (!json.empty()) out.write(json, as_json(mesh, seed, reproducible, totals));
  });
}

}  // namespace

std::string command_for(Mesh& mesh, std::uint64_t seed, bool reproducible) {
  const bool mpi = mesh.world().kind() == "mpi";
  const auto if_many = [](const char* flag, int count) {
    return count > 1 ? fmt::format(" {} {}", flag, count) : "";
  };
  return fmt::format("{}kvmesh verify{}{}{} --device {} --seed {} --count 1",
                     mpi ? fmt::format("mpirun -np {} ", mesh.size()) : "",
                     mpi ? "" : if_many("--ranks", mesh.size()),
                     if_many("--head-parallel", mesh.head_parallel()),
                     reproducible ? " --reproducible" : "", device_name(mesh), seed);
}

void add_verify_options(CLI::App& command, VerifyOptions& options) {
  command.add_option("--seconds", options.seconds,
                     "stop after this many seconds; default without --count: ten");
  command.add_option("--count", options.count, "stop after this many cases");
  command.add_option(
      "--seed", options.seed,
      "seed of the first case; each later case has the next number; a failure prints its seed");
  command.add_flag("--reproducible", options.reproducible,
                   "also compare every bit with that of one rank (CPUs)");
}

int run_verify(Mesh& mesh, const VerifyOptions& options, const std::string& json, Output& out) {
  if (!(options.seconds >= 0) || options.count < 0) {
    throw InvalidArgument(fmt::format("--seconds {} and --count {}: neither may be negative",
                                      options.seconds, options.count));
  }
  catch_interrupts();
  const Clock::time_point start = Clock::now();
  verify::CaseRunner runner(mesh, options.reproducible);
  Totals totals;
  const std::uint64_t first = first_seed(mesh, options);
  std::uint64_t seed = first;
  do {
    const verify::CaseResult result = run_case(mesh, runner, seed, options.reproducible);
    if (!result.findings.good()) report(mesh, seed, options.reproducible, result);
    add(mesh, result, totals);
    totals.seconds = seconds_since(start);
    if (mesh.rank().value == 0) out.progress([&] { return text_of(totals, options.reproducible); });
    ++seed;
  } while (goes_on(mesh, options, totals));
  finish(mesh, first, options.reproducible, totals, json, out);
  if (totals.failed > 0) return 1;
  return totals.signal == 0 ? 0 : 128 + totals.signal;
}

int run_verify_on_threads(int ranks, const VerifyOptions& options, const MeshOptions& mesh,
                          const std::string& json, Output& out) {
  int status = 1;
  run_loopback(ranks, [&](Communicator& comm) {
    const std::unique_ptr<Communicator> world = with_world_ranks(comm);
    Mesh mine(*world, mesh);
    const int result = run_verify(mine, options, json, out);
    if (mine.rank().value == 0) status = result;
  });
  return status;
}

}  // namespace kvmesh::launch
