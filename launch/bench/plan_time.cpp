#include "launch/bench/plan_time.hpp"

#include <algorithm>
#include <chrono>
#include <vector>

namespace kvmesh::bench {
namespace {

constexpr int kTurnsPerRepeat = 10;  // a turn takes some ten microseconds
// Plans of at most this many rows (queries times the query heads per kv head) have limits.
constexpr std::int64_t kRowsOfDecode = 64;
constexpr int kWindow = 1024;

}  // namespace

Row measure_plan(Workload& workload, const Options& options, std::int64_t tokens) {
  const WorkloadShape& shape = workload.shape();
  Mesh& mesh = workload.mesh();
  KvCache& cache = workload.cache();
  PlanOptions how{.scatter = options.scatter,
                  .strategy = options.strategy,
                  .way = options.way,
                  .travels_as = options.travels_as,
                  .shares_prefixes = options.shares_prefixes,
                  .least_saved_tokens = 1};
  for (int kind = 1; kind < options.kinds; ++kind) {
    how.kinds.push_back({.layers = {kind}, .mask = mods::sliding_window(kWindow * kind)});
  }
  const bool is_decode = tokens * shape.model.q_heads / shape.model.kv_heads <= kRowsOfDecode;
  if (is_decode) {
    how.limits = StepLimits{.sequences = shape.batch,
                            .query_tokens = tokens,
                            .shares_prefixes = shape.shared_prefix > 0 && options.shares_prefixes};
  }
  StepPlan plan = cache.plan({}, how);
  const auto turns =
      static_cast<int>(std::min<std::int64_t>(std::int64_t{options.repeats} * kTurnsPerRepeat,
                                              std::ranges::min(workload.lengths()) / tokens - 1));
  std::vector<BatchEntry> batch;
  for (std::size_t i = 0; i < workload.sequences().size(); ++i) {
    const SequenceId sequence = workload.sequences()[i];
    cache.truncate(sequence, workload.lengths()[i] - (turns + 1) * tokens);
    batch.push_back({sequence, tokens});
  }
  std::vector<double> seconds, until_done;
  const auto wait = [&] { mesh.wait({}, "bench: planning"); };
  cache.replan(plan, batch);  // sends all pages, and compiles
  wait();
  for (int turn = 0; turn < turns; ++turn) {
    const auto begin = std::chrono::steady_clock::now();
    const auto passed = [&] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    };
    cache.replan(plan, batch);
    seconds.push_back(passed());
    wait();
    until_done.push_back(passed());
  }
  all_reduce_max(mesh.world(), seconds, "bench: times");
  all_reduce_max(mesh.world(), until_done, "bench: times");
  Row row{.what = case_of(shape, Op::kPlan, tokens),
          .layers = shape.layers,
          .calls = 1,
          .turns = turns,
          .timing = Timing::kHost,
          .operation = {.amount = 0, .seconds = summarise(seconds)}};
  if (mesh.device().kind == DeviceKind::kCuda) row.on_device = summarise(until_done);
  return row;
}

}  // namespace kvmesh::bench
