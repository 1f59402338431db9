#include "launch/bench/plan_time.hpp"

#include <algorithm>
#include <chrono>
#include <vector>

#include "launch/bench/manners.hpp"

namespace kvmesh::bench {
namespace {

constexpr int kTurnsPerRepeat = 10;  // a turn takes some ten microseconds
// Plans of at most this many rows (queries times the query heads per kv head) have limits.
constexpr std::int64_t kRowsOfDecode = 64;
constexpr int kWindow = 1024;

PlanOptions options_of_plans(const WorkloadShape& shape, const Options& options,
                             std::int64_t tokens) {
  PlanOptions how = plan_options(options);
  for (int kind = 1; kind < options.kinds; ++kind) {
    how.kinds.push_back({.layers = {kind}, .mask = mods::sliding_window(kWindow * kind)});
  }
  const bool is_decode = tokens * shape.model.q_heads / shape.model.kv_heads <= kRowsOfDecode;
  if (is_decode) {
    how.limits = StepLimits{.sequences = shape.batch,
                            .query_tokens = tokens,
                            .shares_prefixes = shape.shared_prefix > 0 && options.shares_prefixes};
  }
  return how;
}

/// Each turn appends, so the sequences must have room for all.
int turns_of(std::span<const std::int64_t> lengths, const Options& options, std::int64_t tokens) {
  return static_cast<int>(std::min<std::int64_t>(std::int64_t{options.repeats} * kTurnsPerRepeat,
                                                 std::ranges::min(lengths) / tokens - 1));
}

/// Truncates the sequences by as many tokens.
std::vector<BatchEntry> truncated_batch(Workload& workload, std::int64_t by, std::int64_t tokens) {
  std::vector<BatchEntry> batch;
  for (std::size_t i = 0; i < workload.sequences().size(); ++i) {
    const SequenceId sequence = workload.sequences()[i];
    workload.cache().truncate(sequence, workload.lengths()[i] - by);
    batch.push_back({sequence, tokens});
  }
  return batch;
}

/// The seconds of each turn, on the slowest rank.
struct PlanTimes {
  std::vector<double> on_host{}, until_done{};
};

PlanTimes time_plans(Workload& workload, StepPlan& plan, const std::vector<BatchEntry>& batch,
                     int turns) {
  Mesh& mesh = workload.mesh();
  KvCache& cache = workload.cache();
  PlanTimes times;
  const auto wait = [&] { mesh.wait({}, "bench: planning"); };
  cache.replan(plan, batch);  // sends all pages, and compiles
  wait();
  for (int turn = 0; turn < turns; ++turn) {
    const auto begin = std::chrono::steady_clock::now();
    const auto passed = [&] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    };
    cache.replan(plan, batch);
    times.on_host.push_back(passed());
    wait();
    times.until_done.push_back(passed());
  }
  all_reduce_max(mesh.world(), times.on_host, "bench: times");
  all_reduce_max(mesh.world(), times.until_done, "bench: times");
  return times;
}

}  // namespace

// Those of all turns, and of the one before them.
std::int64_t tokens_of_plans(std::span<const std::int64_t> lengths, const Options& options,
                             std::int64_t tokens) {
  return (turns_of(lengths, options, tokens) + 1) * tokens;
}

Row measure_plan(Workload& workload, const Options& options, std::int64_t tokens) {
  const WorkloadShape& shape = workload.shape();
  StepPlan plan = workload.cache().plan({}, options_of_plans(shape, options, tokens));
  const int turns = turns_of(workload.lengths(), options, tokens);
  const std::vector<BatchEntry> batch =
      truncated_batch(workload, tokens_of_plans(workload.lengths(), options, tokens), tokens);
  const PlanTimes times = time_plans(workload, plan, batch, turns);
  Row row{.what = case_of(shape, Op::kPlan, tokens),
          .layers = shape.layers,
          .calls = 1,
          .turns = turns,
          .timing = Timing::kHost,
          .operation = {.amount = 0, .seconds = summarise(times.on_host)}};
  if (workload.mesh().device().kind == DeviceKind::kCuda) {
    row.on_device = summarise(times.until_done);
  }
  return row;
}

}  // namespace kvmesh::bench
