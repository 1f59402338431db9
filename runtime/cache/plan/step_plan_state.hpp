// The state of a step's plan: the plans of all layer groups.
#pragma once

#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "core/check.hpp"
#include "runtime/cache/cache_state.hpp"
#include "runtime/cache/plan/group_step.hpp"
#include "runtime/step/layer_kinds.hpp"

namespace kvmesh {

class StepPlan::State final : public CacheUser {
 public:
  /// Makes the kernels for batches like this one. The allocators have not appended the batch yet,
  /// and nothing is planned here.
  State(KvCache::State& owner, std::span<const BatchEntry> batch, const PlanOptions& options)
      : cache_(&owner),
        scatter_(options.scatter),
        limits_(options.limits),
        hashes_(hashes_of(options)) {
    if (options.block_mask) block_mask_ = *options.block_mask;
    GroupStepOptions common{.block_mask = block_mask_ ? &*block_mask_ : nullptr,
                            .combine = combine_options(options),
                            .limits = limits_,
                            .shares_prefixes = options.shares_prefixes,
                            .least_saved_tokens = options.least_saved_tokens,
                            .fixed_split_tokens = options.fixed_split_tokens};
    LayerKinds kinds(owner.group_of_layer, owner.groups.size(), options);
    kind_of_layer_ = std::move(kinds.of_layer);
    for (std::size_t g = 0; g < owner.groups.size(); ++g) {
      common.kinds = std::move(kinds.of_group[g]);
      groups_.emplace_back(owner.groups[g], owner.mesh, common, batch);
    }
    owner.users.insert(this);
  }

  ~State() {
    if (cache_ == nullptr) return;
    cache_->let_go();
    cache_->users.erase(this);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  /// Destroys the kernels before the backend that they use. After this call the plan refuses
  /// everything.
  void cache_ends() noexcept override {
    for (GroupStep& group : groups_) group.cache_ends();
    cache_ = nullptr;
  }
  bool is_of(const KvCache::State& cache) const { return cache_ == &cache; }

  /// Refuses a batch that is too large, before the allocators append. @throws InvalidArgument.
  void check(std::span<const SequenceSize> batch) const {
    for (const GroupStep& group : groups_) group.check(batch);
  }

  /// REQUIRES: checked sizes, and the allocators have appended the batch's tokens.
  void plan(std::span<const BatchEntry> batch, std::span<const SequenceSize> sizes,
            std::span<const std::int64_t> q_positions, Stream stream) {
    is_planned_ = false;
    for (GroupStep& group : groups_) {
      group.plan(batch, sizes, q_positions, cache_->history.digest(), stream);
    }
    is_planned_ = true;
    good_at_ = cache_->digest();
  }

  /// Returns the rules for a batch that is planned in place.
  StepRules rules(std::span<const std::int64_t> q_positions) const {
    return {q_positions, block_mask_ ? &*block_mask_ : nullptr, limits_};
  }
  /// Returns the hashes of the plan's options and of a batch that is not appended yet.
  PlanHashes hashes(std::span<const BatchEntry> batch,
                    std::span<const std::int64_t> q_positions) const {
    return with_batch(hashes_, batch, q_positions, cache_->digest());
  }
  std::int64_t query_tokens() const { return groups_[0].query_tokens(); }
  std::int64_t append_tokens() const { return groups_[0].append_tokens(); }
  const Participation& participation(int layer) {
    const GroupStep& group = group_of(layer);
    // Only the first call reads page tables; later ones return what it computed.
    if (!group.batch().has_participation()) check_current();
    return group.batch().participation();
  }
  TileCounts tiles() const {
    check_planned();
    cache_->wait_idle();
    TileCounts sum;
    for (const GroupStep& group : groups_) sum += group.tiles();
    return sum;
  }
  /// Returns the sum of `number(group)` over all groups.
  template <class Number>
  auto sum(const Number& number) const {
    check_cache();
    auto sum = number(groups_[0]);
    for (std::size_t g = 1; g < groups_.size(); ++g) sum += number(groups_[g]);
    return sum;
  }
  std::int64_t workspace_bytes() const {
    return sum([](const GroupStep& group) { return group.workspace_bytes(); });
  }
  std::int64_t host_bytes() const {
    return sum([](const GroupStep& group) { return group.host_bytes(); });
  }
  std::uint64_t generation() const {
    return sum([](const GroupStep& group) { return group.generation(); });
  }

  void run(int layer, const LayerInput& input, const CombineOutput& output, Stream stream) {
    check_current();
    GroupStep& group = group_of(layer);
    group.set_layer(layer);
    group.run(cache_->pool(layer), input, output, stream, kind_of(layer));
  }
  void append(int layer, const ConstTensorView& k, const ConstTensorView& v, Stream stream) {
    check_current();
    group_of(layer).append(cache_->pool(layer), k, v, stream);
  }
  void attend_partial(int layer, const ConstTensorView& q, const Partial& out, Stream stream,
                      const ConstTensorView& sinks) {
    check_in_parts();
    check_current();
    GroupStep& group = group_of(layer);
    group.attend_partial(cache_->pool(layer), {q, sinks, kind_of(layer)}, out, stream);
  }
  void combine(const Partial& mine, const CombineOutput& output, Stream stream, int layer) {
    check_in_parts();
    check_current();
    GroupStep& group = group_of(layer);
    group.set_layer(layer);
    group.combine(mine, output, stream);
  }
  void gather_queries(int layer, const ConstTensorView& share, const TensorView& q, Stream stream) {
    check_current();
    GroupStep& group = group_of(layer);
    group.set_layer(layer);
    group.gather_queries(share, q, stream);
  }

  IndexRange tokens_of_output() const {
    check_cache();
    return scatter_ == Scatter::kTokens ? share(query_tokens()) : IndexRange{0, query_tokens()};
  }
  IndexRange heads_of_output(int layer) const {
    const std::int64_t heads = group_of(layer).group().shape.attention.q_heads;
    return scatter_ == Scatter::kHeads ? share(heads) : IndexRange{0, heads};
  }

 private:
  void check_cache() const { require(cache_ != nullptr, "plan: its cache is gone"); }
  void check_planned() const {
    check_cache();
    require(is_planned_, "plan: its last replan failed half way: plan it again first");
  }
  /// Checks that no sequence of the plan has changed since. An unchanged digest means that nothing
  /// in the allocators has changed, so the loop is skipped.
  void check_current() {
    check_planned();
    if (cache_->digest() == good_at_) return;
    for (const GroupStep& group : groups_) {
      const std::optional<SequenceId> changed = group.changed_sequence();
      require(!changed,
              "plan: sequence {} was appended to, truncated or erased since the plan was made",
              changed.value_or(SequenceId()));
    }
    good_at_ = cache_->digest();
  }
  /// Checks that float32 partials may be taken out of the step and put back.
  void check_in_parts() const {
    check_cache();
    if (cache_->options.reproducible) {
      throw Unsupported("plan: a reproducible cache's plan only runs as a whole");
    }
  }

  /// @throws InvalidArgument if the layer does not exist or holds states.
  const GroupStep& group_of(int layer) const { return groups_[attention_group(layer)]; }
  GroupStep& group_of(int layer) { return groups_[attention_group(layer)]; }
  std::size_t attention_group(int layer) const {
    check_cache();
    return cache_->attention_group(layer);
  }
  IndexRange share(std::int64_t count) const {
    return share_of(count, cache_->mesh.kv_rank().value, cache_->mesh.kv_parallel());
  }

  std::size_t kind_of(int layer) const { return kind_of_layer_[static_cast<std::size_t>(layer)]; }

  KvCache::State* cache_;  // null: the cache was destroyed
  Scatter scatter_;
  std::optional<StepLimits> limits_;
  PlanHashes hashes_;  // of the options, without a batch
  std::optional<BlockMask> block_mask_;
  std::deque<GroupStep> groups_;
  std::vector<std::size_t> kind_of_layer_;  // [layer] index among the kinds of its group
  bool is_planned_ = false;
  std::uint64_t good_at_ = 0;  // the cache's digest when the plan was last known to be good
};

}  // namespace kvmesh
