// A step's plan for the layers of one group.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "runtime/cache/cache_group.hpp"
#include "runtime/step/step_run.hpp"

namespace kvmesh {

/// The options that the plans of all groups share.
struct GroupStepOptions {
  /// One per kind of layer in the group. The group sets `first_head` and adds its window.
  std::vector<AttentionOptions> kinds{};
  const BlockMask* block_mask = nullptr;  ///< outlives the step
  CombineOptions combine{};
  std::optional<StepLimits> limits{};
  bool shares_prefixes = true;
  std::optional<std::int64_t> least_saved_tokens{};  ///< unset: the device's rule
  std::int64_t fixed_split_tokens = 0;
};

/// Made once, planned once per step, run once per layer. The caller checks that the plan is current
/// and that the layer belongs to the group. Must not be moved after it was planned. A group of
/// states has nothing to plan and no layer to run.
/// REQUIRES: the group and the mesh outlive it, or its use before cache_ends().
class GroupStep {
 public:
  /// Makes the kernels for batches like `first`, which the allocator has not appended yet.
  GroupStep(CacheGroup& group, Mesh& mesh, const GroupStepOptions& options,
            std::span<const BatchEntry> first);

  /// Refuses a batch that is too large, before the allocator appends.
  void check(std::span<const SequenceSize> batch) const {
    if (run_) run_->check(batch);
  }
  /// REQUIRES: checked sizes, and the allocator has appended the batch's tokens.
  void plan(std::span<const BatchEntry> batch, std::span<const SequenceSize> sizes,
            std::span<const std::int64_t> q_positions, const PlanDigest& digest, Stream stream);
  /// Returns a sequence of the batch that has changed since it was planned.
  std::optional<SequenceId> changed_sequence() const;

  /// As StepRun::set_layer.
  void set_layer(int layer) { run_->set_layer(layer); }
  /// `kind` is the layer's index in GroupStepOptions::kinds.
  void run(const KvPool& pool, const LayerInput& input, const CombineOutput& output, Stream stream,
           std::size_t kind) {
    run_->run(pool, input, output, stream, kind);
  }
  void append(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
              Stream stream) {
    run_->append(pool, k, v, stream);
  }
  void attend_partial(const KvPool& pool, const AttendInput& input, const Partial& out,
                      Stream stream) {
    run_->attend_partial(pool, input, out, stream);
  }
  void combine(const Partial& mine, const CombineOutput& output, Stream stream) {
    run_->combine(mine, output, stream);
  }
  void gather_queries(const ConstTensorView& share, const TensorView& q, Stream stream) {
    run_->gather_queries(share, q, stream);
  }

  /// Destroys the kernels before the backend that they use. After this only query_tokens() and
  /// append_tokens() may be called.
  void cache_ends() noexcept { run_.reset(); }

  const CacheGroup& group() const { return group_; }
  const StepBatch& batch() const { return batch_; }
  std::int64_t query_tokens() const { return tokens_of(limits_, batch_.query_tokens()); }
  std::int64_t append_tokens() const { return tokens_of(limits_, batch_.append_tokens()); }
  TileCounts tiles() const { return run_ ? run_->tiles() : TileCounts{}; }
  std::int64_t workspace_bytes() const { return run_ ? run_->workspace_bytes() : 0; }
  std::int64_t host_bytes() const { return run_ ? run_->host_bytes() : 0; }
  std::uint64_t generation() const { return run_ ? run_->generation() : 0; }

 private:
  CacheGroup& group_;
  std::optional<StepLimits> limits_;
  StepBatch batch_;
  std::optional<StepRun> run_;  // empty: the cache was destroyed, or the group has states
};

}  // namespace kvmesh
