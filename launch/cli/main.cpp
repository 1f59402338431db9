// The kvmesh program: subcommands, and errors that end every rank with one line.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <functional>
#include <optional>
#include <thread>

#include "kvmesh/kvmesh.hpp"
#include "kvmesh/tcp.hpp"
#include "launch/cli/agree.hpp"
#include "launch/cli/bench.hpp"
#include "launch/cli/generate.hpp"
#include "launch/cli/info.hpp"
#include "launch/cli/verify.hpp"

namespace kvmesh::launch {
namespace {

constexpr int kUsageError = 2;
constexpr std::chrono::seconds kHeadStart{2};

struct CommonOptions {
  std::string device = "auto";
  int threads = 0;
  int head_parallel = 1;
  int timeout_s = 60;
};

// Before the ranks have met the environment tells the rank; without a launcher there is one.
int launcher_rank() {
  for (const char* variable : {"KVMESH_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"}) {
    if (const char* rank = std::getenv(variable)) return std::atoi(rank);
  }
  return 0;
}

// An error that all ranks have: one of them tells.
int fail_together(const std::string& message) {
  if (launcher_rank() == 0) fmt::print(stderr, "kvmesh: {}\n", message);
  return kUsageError;
}

// An error that may be this rank's alone.
int fail_alone(const std::string& message) {
  fmt::print(stderr, "kvmesh: rank {}: {}\n", launcher_rank(), message);
  return kUsageError;
}

void add_common_options(CLI::App& command, CommonOptions& common) {
  command.add_option("--device", common.device, "auto, cpu or cuda")->capture_default_str();
  command.add_option("--threads", common.threads, "threads a rank; 0: its share of the cores")
      ->capture_default_str();
  command
      .add_option("--head-parallel", common.head_parallel,
                  "ranks that share out the heads instead of the pages")
      ->capture_default_str();
  command
      .add_option("--timeout", common.timeout_s,
                  "seconds after which a rank that does not come or answer is an error")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
}

MeshOptions mesh_options(const CommonOptions& common) {
  return {.head_parallel = common.head_parallel,
          .threads = common.threads,
          .device = device_choice_from(common.device),
          .deadline = std::chrono::seconds(common.timeout_s)};
}

struct GenerateFlags {
  GenerateOptions options;
  std::string placement = "balanced";
  std::string dtype = "bfloat16";
  bool raw = false;
};

void add_generate_options(CLI::App& command, GenerateFlags& flags) {
  GenerateOptions& options = flags.options;
  GeneratorOptions& generator = options.generator;
  engine::SamplingOptions& sampling = generator.sampling;
  command.add_option("--model", options.model, "a GGUF file of the llama architecture")->required();
  command.add_option("--prompt", options.prompt, "what to answer")->required();
  command.add_flag("--raw", flags.raw, "continue the prompt as it is, without the chat format");
  command.add_option("--max-tokens", options.max_tokens)->capture_default_str();
  command.add_option("--temperature", sampling.temperature, "0: always the likeliest token")
      ->capture_default_str();
  command.add_option("--top-k", sampling.top_k, "0: all")->capture_default_str();
  command.add_option("--top-p", sampling.top_p)->capture_default_str();
  command.add_option("--seed", sampling.seed, "of the sampling")->capture_default_str();
  command.add_option("--page-size", generator.page_size, "tokens a page")->capture_default_str();
  command.add_option("--pages-per-rank", generator.pages_per_rank, "0: as many as are needed")
      ->capture_default_str();
  command
      .add_option("--memory-fraction", generator.memory_fraction,
                  "instead of --pages-per-rank: so much of what the device has free")
      ->capture_default_str();
  command.add_option("--placement", flags.placement, "balanced, striped or packed")
      ->capture_default_str();
  command
      .add_option("--home-threshold", generator.home_threshold_tokens,
                  "balanced: up to so many tokens stay on one rank; 0 spreads from the start")
      ->capture_default_str();
  command.add_option("--kv-dtype", flags.dtype, "float32, float16 or bfloat16")
      ->capture_default_str();
  command.add_flag("--ranks-check", options.ranks_check,
                   "run again on a single rank and compare the tokens");
}

int generate(const CommonOptions& common, GenerateFlags& flags) {
  flags.options.chat = !flags.raw;
  flags.options.generator.placement = placement_from(flags.placement);
  flags.options.generator.kv_dtype = dtype_from(flags.dtype);
  Mesh mesh = Mesh::from_launcher(mesh_options(common));
  return run_generate(mesh, flags.options);
}

int verify(const CommonOptions& common, int thread_ranks, const VerifyOptions& options) {
  if (thread_ranks > 0) {
    return run_verify_on_threads(thread_ranks, options, mesh_options(common));
  }
  Mesh mesh = Mesh::from_launcher(mesh_options(common));
  return run_verify(mesh, options);
}

int info(const CommonOptions& common) {
  MeshOptions options = mesh_options(common);
  options.makes_nccl = false;  // it combines nothing
  Mesh mesh = Mesh::from_launcher(options);
  const std::string text = build_and_machine_info(mesh);
  if (mesh.rank().value == 0) fmt::print("{}", text);
  return 0;
}

int bench(const CommonOptions& common, const kvmesh::bench::Flags& flags,
          const std::string& command) {
  Mesh mesh = Mesh::from_launcher(mesh_options(common));
  return run_bench(mesh, flags, command);
}

// As typed, for a person to read; under a launcher with the number of ranks.
std::string command_line(int argc, char** argv) {
  std::string line;
  for (int i = 0; i < argc; ++i) line += (i > 0 ? " " : "") + std::string(argv[i]);
  const char* ranks = std::getenv("OMPI_COMM_WORLD_SIZE");
  return ranks ? fmt::format("mpirun -np {} {}", ranks, line) : line;
}

// The flags of all subcommands.
struct Flags {
  CommonOptions common;
  std::string command_line;
  GenerateFlags generate;
  VerifyOptions verify;
  kvmesh::bench::Flags bench;
  int thread_ranks = 0;
};

// Adds the subcommands; the one that is given leaves what to run in `command`.
void add_subcommands(CLI::App& app, Flags& flags, std::function<int()>& command) {
  CLI::App& generate_app = *app.add_subcommand("generate", "write text with a real model");
  add_generate_options(generate_app, flags.generate);
  generate_app.callback([&] { command = [&] { return generate(flags.common, flags.generate); }; });

  CLI::App& verify_app =
      *app.add_subcommand("verify", "random configurations against float64, on any ranks");
  add_verify_options(verify_app, flags.verify);
  verify_app
      .add_option("--ranks", flags.thread_ranks,
                  "run on so many threads of this process instead of the job's ranks")
      ->check(CLI::Range(1, int{PageId::kMaxRanks}));
  verify_app.callback(
      [&] { command = [&] { return verify(flags.common, flags.thread_ranks, flags.verify); }; });

  CLI::App& info_app = *app.add_subcommand("info", "what this build and this machine have");
  info_app.callback([&] { command = [&] { return info(flags.common); }; });

  CLI::App& bench_app =
      *app.add_subcommand("bench", "how fast the operations are, beside what the machine can do");
  kvmesh::bench::add_options(bench_app, flags.bench);
  bench_app.callback(
      [&] { command = [&] { return bench(flags.common, flags.bench, flags.command_line); }; });

  for (CLI::App* sub : {&generate_app, &verify_app, &info_app, &bench_app}) {
    add_common_options(*sub, flags.common);
  }
}

int run(int argc, char** argv) {
  CLI::App app{
      "Exact attention over a KV cache spread in pages over many ranks.\n"
      "Alone it runs on one rank; under mpirun on as many as are started:\n"
      "  mpirun -np 4 kvmesh generate --model model.gguf --prompt 'Why is the sky blue?'\n"
      "Without mpirun, start each rank with KVMESH_RANK=0, KVMESH_SIZE=4 and\n"
      "KVMESH_RENDEZVOUS=host:port, where rank 0 listens."};
  app.require_subcommand(1);
  app.set_version_flag("--version", KVMESH_VERSION);
  Flags flags;
  flags.command_line = command_line(argc, argv);
  std::function<int()> command;
  add_subcommands(app, flags, command);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return launcher_rank() == 0 ? app.exit(help) : 0;
  } catch (const CLI::ParseError& error) {
    // The launcher ends all ranks as soon as one has failed: the one that tells goes first.
    if (launcher_rank() != 0) std::this_thread::sleep_for(kHeadStart);
    return fail_together(fmt::format("{} (see kvmesh --help)", error.what()));
  }
  std::optional<MpiSession> session;
  if (!tcp_options_from_environment() && MpiSession::launched_by_mpirun()) {
    session.emplace(argc, argv);
  }
  try {
    return command();
  } catch (const AgreedError& error) {
    return fail_together(error.what());
  } catch (const InvalidArgument& error) {  // flags are the same on every rank
    return fail_together(error.what());
  } catch (const Unsupported& error) {
    return fail_together(error.what());
  } catch (const OutOfMemory& error) {  // the ranks agreed on it
    return fail_together(error.what());
  }
  // Anything else leaves through the session, which then does not wait for the others: the launcher
  // ends them.
}

}  // namespace
}  // namespace kvmesh::launch

int main(int argc, char** argv) {
  try {
    return kvmesh::launch::run(argc, argv);
  } catch (const std::exception& error) {
    return kvmesh::launch::fail_alone(error.what());
  }
}
