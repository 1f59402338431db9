// A step's plan for the layers of one group.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kvmesh/device_memory.hpp"
#include "runtime/cache_group.hpp"
#include "runtime/step/backend.hpp"

namespace kvmesh {

/// What the groups' plans have in common.
struct GroupStepOptions {
  /// Of the group's layers; `first_head` and the window are the group's own matter.
  std::vector<AttentionOptions> kinds{};
  const BlockMask* block_mask = nullptr;  ///< outlives the step
  CombineOptions combine{};
  std::optional<StepLimits> limits{};
};

/// Made once, planned once per step, run once per layer. Checks the tensors that it is given; that
/// the plan is current, and that the layer is the group's, is the caller's matter.
/// REQUIRES: the group and the mesh outlive it, or its use before cache_ends().
class GroupStep {
 public:
  /// Makes the kernels for batches like `first`, which the allocator has not appended yet.
  GroupStep(CacheGroup& group, Mesh& mesh, const GroupStepOptions& options,
            std::span<const BatchEntry> first);

  /// Refuses a batch that is too large, before the allocator appends.
  void check(std::span<const SequenceSize> batch) const;
  /// REQUIRES: the allocator has appended the batch's tokens.
  void plan(std::span<const BatchEntry> batch, std::span<const std::int64_t> q_positions,
            const PlanDigest& digest, Stream stream);
  /// Returns a sequence of the batch that has changed since it was planned.
  std::optional<SequenceId> changed_sequence() const;

  /// `kind` is the layer's, a place in GroupStepOptions::kinds.
  void run(const KvPool& pool, const LayerInput& input, const CombineOutput& output, Stream stream,
           std::size_t kind);
  void append(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
              Stream stream);
  void attend_partial(const KvPool& pool, const AttendInput& input, const Partial& out,
                      Stream stream);
  void combine(const Partial& mine, const CombineOutput& output, Stream stream);

  /// Destroys the kernels before the backend that they use. After this only query_tokens() and
  /// append_tokens() may be called.
  void cache_ends() noexcept { kernels_.reset(); }

  const CacheGroup& group() const { return group_; }
  const StepBatch& batch() const { return batch_; }
  std::int64_t query_tokens() const { return room_for(batch_.query_tokens); }
  std::int64_t append_tokens() const { return room_for(batch_.append_tokens); }
  TileCounts tiles() const { return kernels_->tiles(); }
  std::int64_t workspace_bytes() const;
  std::int64_t host_bytes() const;
  std::uint64_t generation() const { return kernels_->generation() + partial_growths_; }

 private:
  const AttentionShape& shape() const { return group_.shape.attention; }
  bool is_on_host() const { return mesh_.device().kind == DeviceKind::kCpu; }
  std::int64_t room_for(std::int64_t tokens) const {
    return limits_ ? limits_->sequences * limits_->query_tokens : tokens;
  }
  void check_place(const ConstTensorView& tensor, std::string_view name) const;
  void check_input(const AttendInput& input) const;
  void check_output(const CombineOutput& output) const;
  std::int64_t check_partial_bytes(std::int64_t tokens) const;
  std::size_t partial_bytes() const { return partial_o_.size_bytes() + partial_lse_.size_bytes(); }
  void make_partial();
  void* floats(DeviceMemory& memory, std::int64_t count);

  CacheGroup& group_;
  Mesh& mesh_;
  std::optional<StepLimits> limits_;
  StepBatch batch_;
  std::unique_ptr<StepKernels> kernels_;
  DeviceMemory partial_o_;    // [tokens, q_heads, v_dim]
  DeviceMemory partial_lse_;  // [tokens, q_heads]
  std::vector<DeviceMemory> outgrown_;
  Partial partial_;
  std::uint64_t partial_growths_ = 0;
};

}  // namespace kvmesh
