// The command line of the program: its subcommands, their flags, and the errors in both.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kvmesh/mesh.hpp"
#include "launch/bench/options.hpp"
#include "launch/cli/agree.hpp"
#include "launch/cli/generate.hpp"
#include "launch/cli/plan_capacity.hpp"
#include "launch/cli/replay.hpp"
#include "launch/cli/verify.hpp"

namespace CLI {
class App;
}

namespace kvmesh::launch {

/// The values of all flags.
struct Flags {
  std::string device = "auto";
  int threads = 0;
  int head_parallel = 1;
  int timeout_s = 60;
  std::string json{};  ///< "-": standard output; empty: none

  std::string placement = "balanced";
  std::string dtype = "bfloat16";
  bool raw = false;
  GenerateOptions generate{};

  VerifyOptions verify{};
  int thread_ranks = 0;

  bench::Flags bench{};
  CapacityOptions capacity{};
  ReplayFlags replay{};
  std::string inspect{};  ///< the file
};

/// The subcommand that was given, and the meaning of its flags.
struct Command {
  std::string name{};
  MeshOptions mesh{};
  std::vector<Field> fields{};  ///< the flags that must be the same on all ranks
};

/// Adds the subcommands; parsing one fills `flags` and `command`.
void add_subcommands(CLI::App& app, Flags& flags, Command& command);

/// Checks that the first argument names a subcommand, and that no value is empty.
/// @throws InvalidArgument, with the closest subcommand or the flag's name.
void check_arguments(const CLI::App& app, int argc, const char* const* argv);

}  // namespace kvmesh::launch
