// KvCache's plans: check a batch in all groups, append it to all or none, plan it in each.
#include <algorithm>

#include "runtime/cache/plan/step_plan_state.hpp"

namespace kvmesh {
namespace {

/// Refuses queries that see keys which the group's window has given up.
void check_window(const CacheGroup& group, std::span<const BatchEntry> batch,
                  std::span<const SequenceSize> sizes, const BlockMask* block_mask) {
  require(block_mask == nullptr, "plan: a block mask, of a cache with a window");
  for (std::size_t i = 0; i < batch.size(); ++i) {
    const std::int64_t kept = group.allocator.first_kept(batch[i].sequence);
    const std::int64_t first_key = sizes[i].first_query - group.options.window + 1;
    require(sizes[i].queries == 0 || kept == 0 || first_key >= kept,
            "plan: a query of sequence {} at position {} sees keys, in a window of {}, that were "
            "given up with the first {} tokens",
            batch[i].sequence, sizes[i].first_query, group.options.window, kept);
  }
}

}  // namespace

std::vector<SequenceSize> KvCache::State::check_batch(std::span<const BatchEntry> batch,
                                                      const StepRules& rules) const {
  std::vector<SequenceSize> sizes =
      check_step(groups[0].allocator, groups[0].options, batch, rules);
  const int heads = rules.block_mask ? rules.block_mask->shape().heads : 1;
  for (const CacheGroup& group : groups) {
    if (group.options.state_bytes > 0) continue;  // has no heads
    require(heads == 1 || heads == group.options.q_heads,
            "plan: a block mask for {} heads, a layer group of {}", heads, group.options.q_heads);
    if (group.options.window > 0) check_window(group, batch, sizes, rules.block_mask);
  }
  return sizes;
}

Result<Done> KvCache::State::try_append(std::span<const BatchEntry> batch,
                                        std::span<const SequenceSize> sizes,
                                        const PlanHashes& hashes, std::optional<Stream> stream,
                                        Attempt attempt) {
  history.compare(mesh.world(), hashes, [this] { check_replicas(); });
  requests.clear();
  for (const BatchEntry& entry : batch) requests.push_back({entry.sequence, entry.append_tokens});
  take_back_pages([this](std::size_t g) { return groups[g].allocator.can_append(requests); });
  // A single group refuses when it appends.
  for (std::size_t g = 0; groups.size() > 1 && g < groups.size(); ++g) {
    if (Result<Done> can = groups[g].allocator.can_append(requests); !can) return can;
  }
  std::vector<std::vector<PageCopy>> copies(groups.size());
  for (std::size_t g = 0; g < groups.size(); ++g) {
    Result<std::vector<PageCopy>> made = groups[g].allocator.try_append(requests);
    if (!made) return made.reason();
    copies[g] = std::move(*made);
  }
  history.add(hashes);
  attempt = make_copies(copies, stream, std::move(attempt));
  slide_windows(batch, sizes);  // on every rank, also if it could not copy
  attempt.rethrow();
  return Done{};
}

/// Keeps what queries at the appended positions see, since a later step may have them, too.
void KvCache::State::slide_windows(std::span<const BatchEntry> batch,
                                   std::span<const SequenceSize> sizes) {
  for (CacheGroup& group : groups) {
    for (std::size_t i = 0; i < batch.size() && group.options.window > 0; ++i) {
      const SequenceSize& size = sizes[i];
      if (size.appended == 0) continue;
      group.allocator.slide_window(batch[i].sequence,
                                   std::min(size.first_query, size.length - size.appended));
    }
  }
}

Result<StepPlan> KvCache::try_plan(std::span<const BatchEntry> batch, const PlanOptions& options) {
  State& cache = state();
  const auto sizes =
      cache.check_batch(batch, {options.q_positions, options.block_mask, options.limits});
  // If this rank's device fails, the others append the batch, and may exchange pages with this
  // rank.
  Attempt attempt;
  std::unique_ptr<StepPlan::State> step;
  attempt([&] { cache.wait_for_peers(); });
  attempt.unless_refused([&] {
    step = std::make_unique<StepPlan::State>(cache, batch, options);
    step->check(sizes);
  });
  const PlanHashes hashes =
      step ? step->hashes(batch, options.q_positions)
           : with_batch(hashes_of(options), batch, options.q_positions, cache.digest());
  const Result<Done> appended = cache.try_append(batch, sizes, hashes, {}, attempt);
  attempt.rethrow();
  if (!appended) return appended.reason();
  step->plan(batch, sizes, options.q_positions, {});
  cache.order_after_move_streams({});
  cache.mesh.wait({}, "plan");
  return StepPlan(std::move(step));
}

StepPlan KvCache::plan(std::span<const BatchEntry> batch, const PlanOptions& options) {
  return try_plan(batch, options).value();
}

Result<Done> KvCache::try_replan(StepPlan& step, std::span<const BatchEntry> batch, Stream stream,
                                 std::span<const std::int64_t> q_positions) {
  StepPlan::State& planned = step.state();
  require(planned.is_of(state()), "replan: the plan is another cache's, or its cache is gone");
  const auto sizes = state().check_batch(batch, planned.rules(q_positions));
  planned.check(sizes);
  const auto appended =
      state().try_append(batch, sizes, planned.hashes(batch, q_positions), stream);
  if (!appended) return appended.reason();
  planned.plan(batch, sizes, q_positions, stream);
  state().order_after_move_streams(stream);
  return Done{};
}

void KvCache::replan(StepPlan& step, std::span<const BatchEntry> batch, Stream stream,
                     std::span<const std::int64_t> q_positions) {
  try_replan(step, batch, stream, q_positions).value();
}

}  // namespace kvmesh
