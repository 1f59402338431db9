// The kvmesh program: subcommands, and errors that end every rank with one line.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <exception>
#include <optional>
#include <sstream>
#include <thread>

#include "kvmesh/kvmesh.hpp"
#include "launch/cli/agree.hpp"
#include "launch/cli/bench.hpp"
#include "launch/cli/flags.hpp"
#include "launch/cli/generate.hpp"
#include "launch/cli/info.hpp"
#include "launch/cli/inspect.hpp"
#include "launch/cli/output.hpp"
#include "launch/cli/plan_capacity.hpp"
#include "launch/cli/replay.hpp"
#include "launch/cli/verify.hpp"
#include "launch/cli/verify_jobs.hpp"

namespace kvmesh::launch {
namespace {

constexpr int kUsageError = 2;
constexpr std::chrono::seconds kHeadStart{2};

// Returns the launch or, if its variables are invalid, that of a process alone: the error is
// reported later.
Launch launch_or_none() {
  try {
    return launch_from_environment();
  } catch (const InvalidArgument&) {
    return {};
  }
}

bool is_rank_0() { return rank_for_messages().value_or(0) == 0; }

// Prints an error that all ranks have: once, by rank 0.
int fail_together(Output& out, const std::string& message) {
  if (is_rank_0()) out.tell(fmt::format("kvmesh: {}\n", printable(message)));
  return kUsageError;
}

// Returns the status of `run`, or prints its error, which all ranks have: the ranks agreed on it,
// or it follows from the flags, which are the same on every rank.
template <class Run>
auto run_together(Output& out, const Run& run) -> decltype(run()) {
  try {
    return run();
  } catch (const AgreedError& error) {
    return fail_together(out, error.what());
  } catch (const InvalidArgument& error) {
    return fail_together(out, error.what());
  } catch (const Unsupported& error) {
    return fail_together(out, error.what());
  } catch (const OutOfMemory& error) {
    return fail_together(out, error.what());
  } catch (const StreamError& error) {
    return fail_together(out, error.what());
  }
}

// Prints an error that may be this rank's alone.
int fail_alone(Output& out, const std::string& message) {
  const std::optional<int> rank = rank_for_messages();
  out.tell(fmt::format("kvmesh: {}{}\n", rank ? fmt::format("rank {}: ", *rank) : "",
                       printable(message)));
  return kUsageError;
}

// Prints an error of this rank's own command line, before it has met the others. A launcher mostly
// starts all ranks with one command line, and ends them when the first has failed: rank 0 prints
// first, and the others only if rank 0 has no error. Ranks that were started by hand all print.
int fail_at_start(Output& out, const std::string& message) {
  const bool by_hand = launch_or_none().launcher == Launcher::kByHand;
  if (!by_hand && is_rank_0()) return fail_together(out, message);
  if (!by_hand) std::this_thread::sleep_for(kHeadStart);
  return fail_alone(out, message);
}

// Returns the command line as it was typed, for a person to read; under MPI with mpirun's part.
std::string command_line(int argc, char** argv) {
  std::string line;
  for (int i = 0; i < argc; ++i) line += (i > 0 ? " " : "") + std::string(argv[i]);
  const Launch launch = launch_or_none();
  return launch.by_mpi() ? fmt::format("mpirun -np {} {}", launch.size, line) : line;
}

// Throws on a machine without a GPU, also if the other ranks have one: then the job ends with one
// line.
void check_device(const MeshOptions& options) {
  if (options.device != DeviceChoice::kCuda || cuda_device_count() > 0) return;
  throw Unsupported(
      "no CUDA device: this build has no CUDA backend or this machine no GPU; use the "
      "device 'cpu' or 'auto'");
}

int run(const Command& command, const Flags& flags, const std::string& line, Mesh& mesh,
        Output& out) {
  for (const char* name : {"generate", "export", "import"})
    if (command.name == name) return run_generate(mesh, flags.generate, flags.json, out);
  if (command.name == "verify") return run_verify(mesh, flags.verify, flags.json, out);
  if (command.name == "bench") return run_bench(mesh, flags.bench, line, flags.json, out);
  return run_info(mesh, flags.json, out);
}

// Runs verify in several processes, or as one of these. Empty: neither.
std::optional<int> run_verify_apart(const Command& command, const Flags& flags, Output& out) {
  if (command.name != "verify") return std::nullopt;
  if (flags.verify.worker) {
    return run_verify_worker(flags.thread_ranks, flags.verify, command.mesh, out);
  }
  const bool on_gpu = command.mesh.device != DeviceChoice::kCpu && cuda_device_count() > 0;
  VerifyPlace place{.ranks = std::max(1, flags.thread_ranks),
                    .head_parallel = flags.head_parallel,
                    .device = on_gpu ? "cuda" : "cpu",
                    .rules = flags.verify.rules};
  place.jobs = verify_jobs(flags.verify, place.device);
  if (place.jobs == 1) return std::nullopt;
  check_device(command.mesh);
  return run_verify_jobs(worker_command(place, flags.threads, flags.timeout_s), place, flags.verify,
                         flags.timeout_s, flags.json, out);
}

int run_on_ranks(const Command& command, const Flags& flags, const std::string& line,
                 bool under_mpi, Output& out) {
  if (flags.thread_ranks > 0) {
    return run_verify_on_threads(flags.thread_ranks, flags.verify, command.mesh, flags.json, out);
  }
  std::unique_ptr<Communicator> world = make_launched_communicator(*command.mesh.deadline);
  agree_on(*world, command.fields);
  agree(*world, [&] { check_device(command.mesh); });
  // mpirun gives its ranks a terminal even if its own output goes to a file.
  if (under_mpi) out.set_in_place(false);
  MeshOptions options = command.mesh;
  if (command.name == "info") {  // which combines nothing
    options.makes_nccl = false;
    options.peer_window_bytes = 0;
  }
  Mesh mesh(std::move(world), options);
  const int status = run(command, flags, line, mesh, out);
  if (under_mpi) {
    agree(mesh.world(), [&] {
      if (mesh.rank().value == 0) Output::check_launcher();
    });
  }
  // A rank that has stopped is named here, before the end of MPI waits for it.
  barrier(mesh.world(), "end of the program");
  return status;
}

// A command that starts no ranks: under a launcher rank 0 runs it.
std::optional<int> run_alone(const Command& command, const Flags& flags, Output& out) {
  const std::string& name = command.name;
  if (name != "plan-capacity" && name != "replay" && name != "inspect") return std::nullopt;
  if (!is_rank_0()) return 0;
  return run_together(out, [&] {
    if (name == "inspect") return run_inspect(flags.inspect, flags.json, out);
    if (name == "replay") {
      if (flags.replay.has_caches()) check_device(command.mesh);
      return run_replay(flags.replay, command.mesh, flags.json, out);
    }
    return run_plan_capacity(flags.capacity, flags.json, out);
  });
}

constexpr const char* kAbout =
    "Exact attention over a KV cache spread in pages over many ranks.\n"
    "Alone it runs on one rank; under mpirun on as many as are started:\n"
    "  mpirun -np 4 kvmesh generate --model model.gguf --prompt 'Why is the sky blue?'\n"
    "torchrun and srun start the ranks in the same way. Without a launcher, start each\n"
    "with KVMESH_RANK=0, KVMESH_SIZE=4 and KVMESH_RENDEZVOUS=host:port, where rank 0\n"
    "listens. KVMESH_SECRET, the same for all, keeps strangers out.";

// Returns the exit status if the command line is wrong or asks for help; else empty.
std::optional<int> parse(CLI::App& app, int argc, char** argv, Output& out) {
  try {
    check_arguments(app, argc, argv);
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    std::ostringstream text;
    app.exit(help, text);
    if (is_rank_0()) out.put(text.str());
    return 0;
  } catch (const CLI::ParseError& error) {
    return fail_at_start(out, fmt::format("{} (see kvmesh --help)", error.what()));
  } catch (const InvalidArgument& error) {
    return fail_at_start(out, fmt::format("{} (see kvmesh --help)", error.what()));
  }
  return std::nullopt;
}

int run(int argc, char** argv, Output& out) {
  CLI::App app{kAbout};
  app.require_subcommand(1);
  app.set_version_flag("--version", KVMESH_VERSION);
  Flags flags;
  Command command;
  const std::string line = command_line(argc, argv);
  add_subcommands(app, flags, command);
  if (const std::optional<int> status = parse(app, argc, argv, out)) return *status;
  if (const std::optional<int> status = run_alone(command, flags, out)) return *status;
  // A worker of a job's process is no rank of the job.
  const bool under_mpi = !flags.verify.worker && launch_from_environment().by_mpi();
  std::optional<MpiSession> session;
  if (under_mpi) session.emplace(argc, argv, *command.mesh.deadline);
  // Any other error leaves through the session, which then does not wait for the other ranks: the
  // launcher ends them.
  return run_together(out, [&] {
    if (const std::optional<int> status = run_verify_apart(command, flags, out)) return *status;
    return run_on_ranks(command, flags, line, under_mpi, out);
  });
}

}  // namespace
}  // namespace kvmesh::launch

int main(int argc, char** argv) {
  kvmesh::launch::Output out;
  try {
    return kvmesh::launch::run(argc, argv, out);
  } catch (const std::exception& error) {
    return kvmesh::launch::fail_alone(out, error.what());
  }
}
