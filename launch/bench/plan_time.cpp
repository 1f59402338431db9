#include "launch/bench/plan_time.hpp"

#include <algorithm>
#include <chrono>
#include <vector>

namespace kvmesh::bench {
namespace {

constexpr int kTurnsARepeat = 10;  // one takes some ten microseconds
// What limits are for: queries times the query heads of a kv head.
constexpr std::int64_t kRowsOfDecode = 64;

}  // namespace

Row measure_plan(Workload& workload, const Options& options, std::int64_t tokens) {
  const WorkloadShape& shape = workload.shape();
  Mesh& mesh = workload.mesh();
  KvCache& cache = workload.cache();
  PlanOptions how{.scatter = options.scatter, .strategy = options.strategy};
  const bool is_decode = tokens * shape.model.q_heads / shape.model.kv_heads <= kRowsOfDecode;
  if (is_decode) how.limits = StepLimits{.sequences = shape.batch, .query_tokens = tokens};
  StepPlan plan = cache.plan({}, how);
  const auto turns = static_cast<int>(
      std::min<std::int64_t>(options.repeats * kTurnsARepeat, shape.context / tokens - 1));
  std::vector<BatchEntry> batch;
  for (const SequenceId sequence : workload.sequences()) {
    cache.truncate(sequence, shape.context - (turns + 1) * tokens);
    batch.push_back({sequence, tokens});
  }
  std::vector<double> seconds;
  cache.replan(plan, batch);  // sends all pages, and compiles
  for (int turn = 0; turn < turns; ++turn) {
    mesh.wait({}, "bench: planning");
    const auto begin = std::chrono::steady_clock::now();
    cache.replan(plan, batch);
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  all_reduce_max(mesh.world(), seconds, "bench: times");
  return {.op = Op::kPlan,
          .batch = shape.batch,
          .context = shape.context,
          .queries = tokens,
          .layers = shape.layers,
          .calls = 1,
          .turns = turns,
          .timing = Timing::kHost,
          .operation = {.amount = 0, .seconds = summarise(seconds)}};
}

}  // namespace kvmesh::bench
