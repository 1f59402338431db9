// `kvmesh replay`: how often the prefix cache hits, on recorded or drawn requests.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvmesh/mesh.hpp"
#include "launch/cli/output.hpp"

namespace CLI {
class App;
}

namespace kvmesh::launch {

struct ReplayFlags {
  std::string trace{};                    ///< a file; empty: drawn
  std::string generate = "conversation";  ///< the statistics to draw from
  std::int64_t requests = 0;              ///< the first ones of the trace; 0: all
  std::uint64_t seed = 1;
  std::vector<std::string> policies{"hits", "2q", "lru", "s3fifo", "segmented"};
  std::vector<std::int64_t> capacities{1'000'000, 3'000'000, 5'000'000, 15'000'000};
  int ranks = 8;
  int page_size = 16;
  std::string placement = "balanced";
  std::int64_t home_threshold_tokens = 2048;
  double decode_ms = 0;
  std::int64_t attend = 0;     ///< check every this many batches; 0: none
  std::int64_t host_tier = 0;  ///< tokens of all ranks together; 0: none
  std::string tier_folder{};   ///< of a file tier; empty: none
  std::int64_t tier_folder_tokens = 0;
  // The shape of the caches that serve the trace if there are tiers or attention is computed.
  // Unset: those of default_shape.
  std::optional<int> layers{}, q_heads{}, kv_heads{}, dim{};
  std::optional<std::int64_t> queries{};
  std::optional<std::string> dtype{};

  /// Caches serve the trace, and not only an allocator.
  bool has_caches() const { return attend > 0 || has_tiers(); }
  bool has_tiers() const { return host_tier > 0 || tier_folder_tokens > 0; }
};

/// Adds them to the subcommand.
void add_replay_options(CLI::App& command, ReplayFlags& flags);

/// Replays the trace for every capacity and policy, in this process: the allocator is replicated,
/// so one copy decides what those of all ranks would. With tiers, caches on a thread for each rank
/// serve the trace, and the pages' bytes go to the tiers and come back. The caches are on the
/// device of `mesh`, whose deadline they have. Writes a table to standard output, and as JSON to
/// `json` ("-": standard output, and nothing else there) if that is not empty. Returns the exit
/// status: 0, or 1 if a row of --attend is wrong.
/// @throws InvalidArgument, TraceError; OutputError; Unsupported, OutOfMemory.
int run_replay(const ReplayFlags& flags, const MeshOptions& mesh, const std::string& json,
               Output& out);

}  // namespace kvmesh::launch
