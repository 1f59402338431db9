#include "launch/cli/replay.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "kvmesh/device_memory.hpp"
#include "launch/cli/paths.hpp"
#include "launch/cli/tier_report.hpp"
#include "launch/replay/allocator_only.hpp"
#include "launch/replay/attend.hpp"
#include "launch/replay/belady.hpp"
#include "launch/replay/policies.hpp"

namespace kvmesh::launch {
namespace {

using namespace kvmesh::replay;

constexpr const char* kTierLine = " {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}";

struct Row {
  std::string policy{};
  std::int64_t capacity_tokens = 0;
  ReplayCounts counts{};
  double belady = 0;   ///< hit rate
  double seconds = 0;  ///< of the allocator
  std::optional<AttendCounts> attend{};
};

Trace trace_of(const ReplayFlags& flags) {
  Trace trace = flags.trace.empty() ? generated_trace(flags.generate, flags.requests, flags.seed)
                                    : read_trace(flags.trace);
  if (flags.requests > 0 && flags.requests < std::ssize(trace.requests))
    trace.requests.resize(static_cast<std::size_t>(flags.requests));
  return trace;
}

void check(const ReplayFlags& flags) {
  const auto in_range = [](const char* flag, std::int64_t value, std::int64_t least,
                           std::int64_t most) {
    if (value >= least && value <= most) return;
    throw InvalidArgument(fmt::format("{} {} is not in [{}, {}]", flag, value, least, most));
  };
  in_range("--requests", flags.requests, 0, 1 << 24);
  in_range("--attend", flags.attend, 0, std::numeric_limits<std::int64_t>::max());
  in_range("--ranks", flags.ranks, 1, PageId::kMaxRanks);
  check_tier_folder(flags.tier_folder);
}

// @throws InvalidArgument, also if no cache has the shape.
AttendOptions attend_options(const ReplayFlags& flags, const MeshOptions& mesh) {
  const bool on_gpu = mesh.device != DeviceChoice::kCpu && cuda_device_count() > 0;
  const DeviceKind device = on_gpu ? DeviceKind::kCuda : DeviceKind::kCpu;
  AttendOptions options{.every = flags.attend,
                        .shape = default_shape(device),
                        .device = device,
                        .deadline = *mesh.deadline};
  const auto set = [&](const char* flag, const auto& given, auto& to) {
    if (!given) return;
    if (!flags.has_caches())
      throw InvalidArgument(fmt::format("{} needs --attend, --host-tier or --tier-folder", flag));
    if constexpr (std::is_same_v<decltype(to), Dtype&>) {
      to = dtype_from(*given);
    } else {
      to = *given;
    }
  };
  AttendShape& shape = options.shape;
  set("--layers", flags.layers, shape.layers);
  set("--q-heads", flags.q_heads, shape.q_heads);
  set("--kv-heads", flags.kv_heads, shape.kv_heads);
  set("--dim", flags.dim, shape.dim);
  set("--queries", flags.queries, shape.queries);
  set("--dtype", flags.dtype, shape.dtype);
  check(shape);
  return options;
}

// One table, row by row.
class Replays {
 public:
  Replays(const ReplayFlags& flags, const AttendOptions& how, bool shows_rows, Output& out)
      : flags_(flags), how_(how), shows_rows_(shows_rows), out_(out), trace_(trace_of(flags)) {
    runs_ = flags.policies.size() * flags.capacities.size();
  }

  std::vector<Row> run() {
    check_all();
    if (shows_rows_) out_.put(heading());
    std::vector<Row> rows;
    for (const std::int64_t capacity : flags_.capacities) {
      std::optional<double> belady;
      for (const std::string& policy : flags_.policies) {
        const ReplayOptions options = options_of(policy, capacity);
        const AllocatorOptions pools = allocator_options(options);
        if (!belady) belady = best_hits(trace_, options).rate();
        Row row{.policy = policy, .capacity_tokens = capacity, .belady = *belady};
        serve(row, options, pools, rows.size());
        if (shows_rows_) out_.put(line(row));
        rows.push_back(std::move(row));
      }
    }
    out_.end_progress();
    return rows;
  }

  nlohmann::ordered_json json_of(const Row& row) const;
  nlohmann::ordered_json json_of(const std::vector<Row>& rows) const;

 private:
  // Before the heading, and the first of what may be long runs.
  void check_all() const {
    for (const std::int64_t capacity : flags_.capacities)
      for (const std::string& policy : flags_.policies)
        PageAllocator(allocator_options(options_of(policy, capacity)));
  }

  ReplayOptions options_of(const std::string& policy, std::int64_t capacity) const {
    return {.ranks = flags_.ranks,
            .capacity_tokens = capacity,
            .page_size = flags_.page_size,
            .eviction = policy_from(policy),
            .placement = placement_from(flags_.placement),
            .home_threshold_tokens = flags_.home_threshold_tokens,
            .decode_ms = flags_.decode_ms,
            .host_tier_tokens = flags_.host_tier,
            .tier_folder = flags_.tier_folder,
            .file_tier_tokens = flags_.tier_folder_tokens};
  }

  void serve(Row& row, const ReplayOptions& options, const AllocatorOptions& pools,
             std::size_t run) {
    if (flags_.has_caches()) row.attend = attend(trace_, options, how_, progress("attend", run));
    if (flags_.has_tiers()) {
      row.counts = row.attend->served;
      row.seconds = row.attend->seconds;
      return;
    }
    AllocatorOnly served(pools);
    row.counts = Replay(trace_, options, served).run(progress("replay", run));
    row.seconds = served.seconds();
  }

  // A bar over all runs, of which `run` are done.
  std::function<void(std::size_t)> progress(const char* what, std::size_t run) const {
    return [this, what, run](std::size_t done) {
      out_.progress([&] {
        constexpr int kWidth = 30;
        const double part =
            (static_cast<double>(run) +
             static_cast<double>(done) / static_cast<double>(trace_.requests.size())) /
            static_cast<double>(runs_);
        const int marks = static_cast<int>(part * kWidth);
        return fmt::format("{} [{:<{}}] {} of {}, request {} of {}", what,
                           std::string(static_cast<std::size_t>(marks), '#'), kWidth, run + 1,
                           runs_, done, trace_.requests.size());
      });
    };
  }

  std::string heading() const {
    return fmt::format(
        "{}: {} requests, {} prompt tokens, on {} {}{}\n"
        "{:>10} {:>9} {:>7} {:>7} {:>6} {:>6} {:>7} {:>7} {:>7} {:>10} {:>7} {:>7} {:>7}{}{}\n",
        trace_.name, trace_.requests.size(), trace_.prompt_tokens(), flags_.ranks,
        flags_.ranks == 1 ? "rank" : "ranks", caches(), "tokens", "policy", "hit %", "best %",
        "held %", "kept %", "unused %", "balance", "of held", "evictions", "delayed", "refused",
        "Mops/s",
        flags_.has_tiers() ? fmt::format(fmt::runtime(kTierLine), "back", "to host", "from it",
                                         "to files", "from them", "dropped")
                           : "",
        flags_.attend > 0 ? "  rows like float64" : "");
  }

  std::string caches() const {
    if (!flags_.has_caches()) return {};
    return fmt::format(", {} on {}", describe(how_.shape),
                       how_.device == DeviceKind::kCpu ? "the CPU" : "GPUs");
  }

  static double page_rate(const Row& row) {
    return row.seconds > 0 ? static_cast<double>(row.counts.page_operations) / row.seconds : 0;
  }

  std::string line(const Row& row) const {
    const ReplayCounts& counts = row.counts;
    std::string text = fmt::format(
        "{:>10} {:>9} {:>7.2f} {:>7.2f} {:>6.2f} {:>6.1f} {:>7.2f} {:>7.4f} {:>7.4f} {:>10} {:>7} "
        "{:>7} "
        "{:>7.1f}",
        row.capacity_tokens, row.policy, 100 * counts.hit_rate(), 100 * row.belady,
        100 * counts.held, 100 * counts.cached, 100 * counts.fragmentation, counts.balance,
        counts.held_balance, counts.evictions, counts.delayed, counts.refused,
        page_rate(row) / 1e6);
    if (flags_.has_tiers()) {
      const TierStatistics& tiers = row.attend->tiers;
      text += fmt::format(fmt::runtime(kTierLine), tiers.pages_back, tiers.host.stores,
                          tiers.host.loads, tiers.file.stores, tiers.file.loads,
                          tiers.host.drops + tiers.file.drops);
    }
    if (flags_.attend > 0) {
      text += fmt::format("  {} to {:.1e}{}", row.attend->rows, row.attend->max_error,
                          verdict(row).empty() ? "" : ": WRONG: " + verdict(row));
    }
    return text + "\n";
  }

 public:
  /// Returns the first error of the row's attention; empty if it is right.
  static std::string verdict(const Row& row) {
    if (!row.attend) return {};
    if (row.attend->wrong > 0) return row.attend->first_wrong;
    if (row.attend->served.hit_tokens == row.counts.hit_tokens) return {};
    return fmt::format("{} tokens hit instead of {}", row.attend->served.hit_tokens,
                       row.counts.hit_tokens);
  }

 private:
  const ReplayFlags& flags_;
  AttendOptions how_;
  bool shows_rows_;
  Output& out_;
  Trace trace_;
  std::size_t runs_ = 0;
};

nlohmann::ordered_json Replays::json_of(const Row& row) const {
  const ReplayCounts& counts = row.counts;
  nlohmann::ordered_json entry{{"policy", row.policy},
                               {"capacity_tokens", row.capacity_tokens},
                               {"hit_rate", counts.hit_rate()},
                               {"belady_hit_rate", row.belady},
                               {"served", counts.requests},
                               {"refused", counts.refused},
                               {"delayed", counts.delayed},
                               {"hit_tokens", counts.hit_tokens},
                               {"prompt_tokens", counts.prompt_tokens},
                               {"held", counts.held},
                               {"cached", counts.cached},
                               {"fragmentation", counts.fragmentation},
                               {"balance", counts.balance},
                               {"held_balance", counts.held_balance},
                               {"evictions", counts.evictions},
                               {"page_operations", counts.page_operations},
                               {"page_operations_per_second", page_rate(row)},
                               {"tiers", nullptr},
                               {"attend", nullptr}};
  if (flags_.has_tiers()) entry["tiers"] = launch::json_of(row.attend->tiers);
  if (flags_.attend > 0) {
    entry["attend"] = {{"batches", row.attend->batches},
                       {"rows", row.attend->rows},
                       {"wrong", row.attend->wrong},
                       {"max_error", row.attend->max_error},
                       {"verdict", verdict(row)}};
  }
  return entry;
}

nlohmann::ordered_json Replays::json_of(const std::vector<Row>& rows) const {
  nlohmann::ordered_json json{{"program", "kvmesh replay"},
                              {"version", KVMESH_VERSION},
                              {"trace", trace_.name},
                              {"requests", trace_.requests.size()},
                              {"prompt_tokens", trace_.prompt_tokens()},
                              {"ranks", flags_.ranks},
                              {"page_size", flags_.page_size},
                              {"placement", flags_.placement},
                              {"home_threshold_tokens", flags_.home_threshold_tokens},
                              {"decode_ms", flags_.decode_ms},
                              {"host_tier_tokens", flags_.host_tier},
                              {"file_tier_tokens", flags_.tier_folder_tokens},
                              {"caches", nullptr},
                              {"rows", nlohmann::ordered_json::array()}};
  if (flags_.has_caches()) {
    json["caches"] = {{"device", how_.device == DeviceKind::kCpu ? "cpu" : "cuda"},
                      {"layers", how_.shape.layers},
                      {"q_heads", how_.shape.q_heads},
                      {"kv_heads", how_.shape.kv_heads},
                      {"dim", how_.shape.dim},
                      {"dtype", name(how_.shape.dtype)},
                      {"queries", how_.shape.queries}};
  }
  for (const Row& row : rows) json["rows"].push_back(json_of(row));
  return json;
}

// With the values that the flags have by default.
void add_shape_options(CLI::App& command, ReplayFlags& flags) {
  const AttendShape cpu = default_shape(DeviceKind::kCpu), gpu = default_shape(DeviceKind::kCuda);
  const auto value = [&](const char* flag, auto& into, const char* text, const auto& on_cpu,
                         const auto& on_gpu) {
    command.add_option(flag, into,
                       fmt::format("{}; default: {} on CPUs, {} on GPUs", text, on_cpu, on_gpu));
  };
  value("--layers", flags.layers, "layers of the caches, with --attend or tiers", cpu.layers,
        gpu.layers);
  value("--q-heads", flags.q_heads, "query heads of a layer", cpu.q_heads, gpu.q_heads);
  value("--kv-heads", flags.kv_heads, "kv heads of a layer", cpu.kv_heads, gpu.kv_heads);
  value("--dim", flags.dim, "elements of a query, key or value", cpu.dim, gpu.dim);
  value("--dtype", flags.dtype, "type of pages: float32, float16, bfloat16 or float8_e4m3",
        name(cpu.dtype), name(gpu.dtype));
  value("--queries", flags.queries, "the most queries of a sequence in a batch, its newest tokens",
        cpu.queries, gpu.queries);
}

}  // namespace

void add_replay_options(CLI::App& command, ReplayFlags& flags) {
  const auto value = [&](const char* flag, auto& into, const char* text) {
    return command.add_option(flag, into, text)->capture_default_str();
  };
  CLI::Option* const trace =
      value("--trace", flags.trace,
            "requests of a file in Mooncake's format (JSON lines) or Azure's (CSV)");
  trace->excludes(value("--generate", flags.generate,
                        "without a file: draw requests with the statistics of conversation, "
                        "synthetic, azure-code or azure-conversation"));
  value("--requests", flags.requests, "the first requests to use, this many; 0: all");
  trace->excludes(value("--seed", flags.seed, "seed of drawn requests"));
  value("--policy", flags.policies, "orders in which pages are evicted, a row each")
      ->delimiter(',');
  value("--capacity", flags.capacities, "tokens that all ranks together hold, a row each")
      ->delimiter(',');
  value("--ranks", flags.ranks, "ranks that share the pages");
  value("--page-size", flags.page_size, "tokens in a page; divides 512");
  value("--placement", flags.placement, "where pages go: balanced, striped or packed");
  value("--home-threshold", flags.home_threshold_tokens,
        "balanced: sequences of up to this many tokens stay on one rank");
  value("--decode-ms", flags.decode_ms,
        "milliseconds that a token of an answer takes; 0: requests are prompts alone, one after "
        "another");
  value("--host-tier", flags.host_tier,
        "tokens that the host memory of all ranks together holds, for pages that are evicted");
  value("--tier-folder", flags.tier_folder,
        "keep what leaves the host tier in files of this folder");
  value("--tier-folder-tokens", flags.tier_folder_tokens, "the most that all ranks keep there");
  value(
      "--attend", flags.attend,
      "also compute attention, on a thread for each rank, and compare one batch in this many with "
      "float64; 0: do not");
  add_shape_options(command, flags);
}

int run_replay(const ReplayFlags& flags, const MeshOptions& mesh, const std::string& json,
               Output& out) {
  check(flags);
  Replays replays(flags, attend_options(flags, mesh), json != "-", out);
  const std::vector<Row> rows = replays.run();
  if (!json.empty()) out.write(json, replays.json_of(rows).dump(1) + "\n");
  const bool good =
      std::ranges::all_of(rows, [](const Row& row) { return Replays::verdict(row).empty(); });
  return good ? 0 : 1;
}

}  // namespace kvmesh::launch
