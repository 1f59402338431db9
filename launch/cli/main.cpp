// The kvmesh program: subcommands, and errors that end every rank with one line.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <optional>
#include <sstream>
#include <thread>

#include "kvmesh/kvmesh.hpp"
#include "kvmesh/tcp.hpp"
#include "launch/cli/agree.hpp"
#include "launch/cli/bench.hpp"
#include "launch/cli/flags.hpp"
#include "launch/cli/generate.hpp"
#include "launch/cli/info.hpp"
#include "launch/cli/output.hpp"
#include "launch/cli/plan_capacity.hpp"
#include "launch/cli/verify.hpp"
#include "launch/cli/world_ranks.hpp"

namespace kvmesh::launch {
namespace {

constexpr int kUsageError = 2;
constexpr std::chrono::seconds kHeadStart{2};

// Before the ranks have met the environment names the rank; without a launcher there is one.
std::optional<int> launcher_rank() {
  for (const char* variable : {"KVMESH_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"}) {
    const char* text = std::getenv(variable);
    if (text == nullptr) continue;
    int rank = 0;
    const auto [end, error] = std::from_chars(text, text + std::strlen(text), rank);
    return error == std::errc{} && *end == '\0' ? std::optional(rank) : std::nullopt;
  }
  return std::nullopt;
}

// An error that all ranks have: rank 0 prints it.
int fail_together(Output& out, const std::string& message) {
  if (launcher_rank().value_or(0) == 0) out.tell(fmt::format("kvmesh: {}\n", message));
  return kUsageError;
}

// An error that may be this rank's alone.
int fail_alone(Output& out, const std::string& message) {
  const std::optional<int> rank = launcher_rank();
  out.tell(fmt::format("kvmesh: {}{}\n", rank ? fmt::format("rank {}: ", *rank) : "", message));
  return kUsageError;
}

// An error of this rank's own command line, before it has met the others. A launcher mostly starts
// all ranks with one command line, and ends them when the first has failed: rank 0 goes first, and
// the others print theirs only if rank 0 has none. Ranks that were started by hand all print.
int fail_at_start(Output& out, const std::string& message) {
  const int rank = launcher_rank().value_or(0);
  const bool by_hand = std::getenv("KVMESH_RANK") != nullptr;
  if (!by_hand && rank == 0) return fail_together(out, message);
  if (!by_hand) std::this_thread::sleep_for(kHeadStart);
  return fail_alone(out, message);
}

// As typed, for a person to read; under a launcher with the number of ranks.
std::string command_line(int argc, char** argv) {
  std::string line;
  for (int i = 0; i < argc; ++i) line += (i > 0 ? " " : "") + std::string(argv[i]);
  const char* ranks = std::getenv("OMPI_COMM_WORLD_SIZE");
  return ranks ? fmt::format("mpirun -np {} {}", ranks, line) : line;
}

// All processes of the job, before their flags are known to be the same.
std::unique_ptr<Communicator> meet(bool under_mpi, const MeshOptions& options) {
  std::unique_ptr<Communicator> world;
  if (auto tcp = tcp_options_from_environment()) {
    tcp->deadline = *options.deadline;
    world = make_tcp_communicator(*tcp);
  } else {
    world = under_mpi ? make_mpi_communicator() : make_single_communicator();
  }
  world->set_deadline(*options.deadline);
  return world;
}

// A machine without a GPU among others ends the job with one line, too.
void check_device(const MeshOptions& options) {
  if (options.device != DeviceChoice::kCuda || cuda_device_count() > 0) return;
  throw Unsupported(
      "no CUDA device: this build has no CUDA backend or this machine no GPU; use the "
      "device 'cpu' or 'auto'");
}

int run(const Command& command, const Flags& flags, const std::string& line, Mesh& mesh,
        Output& out) {
  if (command.name == "generate") return run_generate(mesh, flags.generate, flags.json, out);
  if (command.name == "verify") return run_verify(mesh, flags.verify, flags.json, out);
  if (command.name == "bench") return run_bench(mesh, flags.bench, line, flags.json, out);
  return run_info(mesh, flags.json, out);
}

int run_on_ranks(const Command& command, const Flags& flags, const std::string& line,
                 bool under_mpi, Output& out) {
  if (flags.thread_ranks > 0) {
    return run_verify_on_threads(flags.thread_ranks, flags.verify, command.mesh, flags.json, out);
  }
  std::unique_ptr<Communicator> world = meet(under_mpi, command.mesh);
  agree_on(*world, command.fields);
  agree(*world, [&] { check_device(command.mesh); });
  // mpirun gives its ranks a terminal of its own even where their output goes to a file.
  if (under_mpi) out.set_in_place(false);
  MeshOptions options = command.mesh;
  options.makes_nccl = command.name != "info";  // which combines nothing
  Mesh mesh(with_world_ranks(std::move(world)), options);
  const int status = run(command, flags, line, mesh, out);
  // The end of MPI waits for every rank, without a deadline: not for one that has stopped.
  barrier(mesh.world(), "end of the program");
  return status;
}

// Alone: under a launcher rank 0 does it.
int plan_capacity(const Flags& flags, Output& out) {
  if (launcher_rank().value_or(0) != 0) return 0;
  try {
    return run_plan_capacity(flags.capacity, flags.json, out);
  } catch (const InvalidArgument& error) {
    return fail_together(out, error.what());
  }
}

int run(int argc, char** argv, Output& out) {
  CLI::App app{
      "Exact attention over a KV cache spread in pages over many ranks.\n"
      "Alone it runs on one rank; under mpirun on as many as are started:\n"
      "  mpirun -np 4 kvmesh generate --model model.gguf --prompt 'Why is the sky blue?'\n"
      "Without mpirun, start each rank with KVMESH_RANK=0, KVMESH_SIZE=4 and\n"
      "KVMESH_RENDEZVOUS=host:port, where rank 0 listens."};
  app.require_subcommand(1);
  app.set_version_flag("--version", KVMESH_VERSION);
  Flags flags;
  Command command;
  const std::string line = command_line(argc, argv);
  add_subcommands(app, flags, command);
  try {
    check_arguments(app, argc, argv);
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    std::ostringstream text;
    app.exit(help, text);
    if (launcher_rank().value_or(0) == 0) out.put(text.str());
    return 0;
  } catch (const CLI::ParseError& error) {
    return fail_at_start(out, fmt::format("{} (see kvmesh --help)", error.what()));
  } catch (const InvalidArgument& error) {
    return fail_at_start(out, fmt::format("{} (see kvmesh --help)", error.what()));
  }
  if (command.name == "plan-capacity") return plan_capacity(flags, out);
  const bool under_mpi = !tcp_options_from_environment() && MpiSession::launched_by_mpirun();
  std::optional<MpiSession> session;
  if (under_mpi) session.emplace(argc, argv);
  try {
    return run_on_ranks(command, flags, line, under_mpi, out);
  } catch (const AgreedError& error) {
    return fail_together(out, error.what());
  } catch (const InvalidArgument& error) {  // flags are the same on every rank
    return fail_together(out, error.what());
  } catch (const Unsupported& error) {
    return fail_together(out, error.what());
  } catch (const OutOfMemory& error) {  // the ranks agreed on it
    return fail_together(out, error.what());
  }
  // Anything else leaves through the session, which then does not wait for the others: the launcher
  // ends them.
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
