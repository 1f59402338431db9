// attend_partial on a CUDA device.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kernels/attend_checks.hpp"
#include "kernels/cuda/attend/choose_attend.hpp"
#include "kernels/cuda/attend/exact/exact_merge.hpp"
#include "kernels/cuda/common/kernel_store.hpp"
#include "kernels/cuda/plan/device_plan.hpp"

namespace kvmesh::cuda {

/// Returns the output in the kernels' form.
AttendOutput attend_output(const AttendedRows& out);

/// The plan of a batch on one device, as AttentionPlan is on the CPU, and the kernels that run it:
/// planned once per step, by an AttendPlanner, and launched once per layer. Movable; one thread at
/// a time. REQUIRES: the device is current.
class CudaAttend {
 public:
  struct Options {
    AttentionOptions attention{};           ///< has no block mask
    const BlockMask* block_mask = nullptr;  ///< copied to the device
    /// Kernels for tensors of these kinds are prepared in advance. Other kinds cost a compilation
    /// at their first launch.
    TensorKinds kinds{};
    /// Sequences with at most this many rows (queries x query heads per kv head) use the short
    /// launch; longer ones use the prefill launch.
    std::int64_t short_rows = 1;
    /// 0: off. Otherwise a piece has this many keys, and the kernel of a sequence's rows follows
    /// from its own number of queries: the bits of a row depend on no other sequence, if its step
    /// is planned with the same `merges_all`. Without limits `short_rows` is then that of one
    /// query. No prefix is shared. REQUIRES: check_fixed_split.
    std::int64_t fixed_split_tokens = 0;
    /// For graphs: allocates all memory that plans within the limits need, and launches grids of
    /// one size, so that a graph that captured `launch` computes the newest plan.
    std::optional<AttendLimits> limits{};
    /// The bits of a row depend on the keys that it sees alone. REQUIRES: each step, and the
    /// limits, have `merges_all` set.
    bool exact = false;
  };

  /// @throws InvalidArgument for a shape that no kernel takes, or limits that are not those of
  /// short query chunks; CudaError.
  CudaAttend(KernelStore& kernels, const AttentionShape& shape, const Options& options);

  /// Checks that a plan can have sequences of these sizes.
  /// @throws InvalidArgument: too much for one plan, or past the limits.
  void check_plan(std::span<const SequenceSize> sequences) const { plan_->check_plan(sequences); }
  /// Checks the output of `launch`. REQUIRES: a plan. @throws InvalidArgument.
  void check_output(const AttendedRows& out) const;
  /// Checks what `launch` requires of its other tensors beyond check_attend_inputs and check_sinks,
  /// which are the same on every device and come first. REQUIRES: a plan.
  /// @throws InvalidArgument for a pool with too few pages or strides that are too wide;
  /// Unsupported if no kernel takes tensors of these kinds.
  void check(const ConstTensorView& q, const ConstKvPool& pool,
             const ConstTensorView& sinks = {}) const;
  /// Starts attention of `q` [tokens, q_heads, k_dim] over the pool into `out`, all on the device,
  /// on `stream`. `sinks` [q_heads] may be empty; a row counts its head's sink if this rank counts
  /// the sinks of its sequence. Allocates nothing and does not wait. May be captured in a graph,
  /// except with tensors of kinds other than Options::kinds, whose first launch compiles. With
  /// limits, tensors have room for as many tokens as the limits. Launches at most four kernels:
  /// short rows, long rows, shared rows, the merge of splits. Every bit of the result depends on
  /// the batch and the device's kind alone. REQUIRES: launches and replays of one CudaAttend run
  /// one after another, and `plan` after them, because they share the workspace and the counters of
  /// claims; and the tensors have passed `check` and `check_output`: this checks nothing.
  void launch(const ConstTensorView& q, const ConstKvPool& pool, const AttendedRows& out,
              cudaStream_t stream, const ConstTensorView& sinks = {});
  /// The same, with rows stored where the combine of several ranks needs them. REQUIRES: the step
  /// was planned with `merges_all`. The last kernel lets the next begin as CombineWay::run_sent
  /// requires.
  void launch(const ConstTensorView& q, const ConstKvPool& pool, const CombineTarget& to,
              cudaStream_t stream, const ConstTensorView& sinks = {});

  /// The same, with the sums as they are: ExactRows on the device, in the messages to their owners.
  /// Rows of tokens that no sequence of the step has keep what they have. REQUIRES: Options::exact.
  void launch(const ConstTensorView& q, const ConstKvPool& pool, const ExactMessages& to,
              cudaStream_t stream);

  const DevicePlan& current() const { return *plan_; }
  /// The prefixes that are worth a block of shared rows.
  SharedPrefixRules shared_prefix_rules() const;
  /// Changes when graphs that were captured before become invalid.
  std::uint64_t generation() const { return plan_->generation() + workspace_growths_; }
  /// Bytes on the device: the partials of splits, and the plan itself with its mods' buffers.
  std::int64_t workspace_bytes() const;
  std::int64_t plan_bytes() const {
    return plan_->size_bytes() + static_cast<std::int64_t>(mods_->size_bytes());
  }

 private:
  friend class AttendPlanner;

  /// The kernels of the launches for one kind of tensors.
  struct Kernels {
    AttendVariant variants[kLaunches];
    jit::Kernel kernels[kLaunches];
  };

  /// True if the plan has such a launch, whose kernel is not loaded.
  bool lacks_kernel(const Kernels& found, LaunchKind launch) const;
  const Kernels& kernels_for(const TensorKinds& kinds);
  /// Without its rows.
  AttendCase case_of(const TensorKinds& kinds) const;
  AttendVariant variant_of(const TensorKinds& kinds, LaunchKind launch) const;
  LaunchShape launch_shape(LaunchKind launch) const;
  /// Kernels write `out`, unless `to` or `exact` has ranks.
  struct Rows {
    AttendOutput out{};
    CombineTarget to{};
    ExactMessages exact{};
  };
  void launch_to(const Rows& rows, const ConstTensorView& q, const ConstKvPool& pool,
                 const ConstTensorView& sinks, cudaStream_t stream);
  AttendParams params_of(const ConstTensorView& q, const ConstKvPool& pool, const AttendOutput& out,
                         const ConstTensorView& sinks) const;
  void reserve_workspace();
  void launch_merge(const Rows& rows, const ConstTensorView& sinks, cudaStream_t stream) const;
  void launch_exact_merge(const Rows& rows, const ConstTensorView& sinks,
                          cudaStream_t stream) const;

  KernelStore* store_;
  AttentionShape shape_;
  AttentionShape planned_;
  TensorKinds kinds_;
  float scale_;
  bool fold_scale_;
  bool has_head_classes_;
  bool exact_;
  int first_head_;
  int row_classes_[kLaunches] = {};
  std::int32_t max_page_ = -1;
  std::map<TensorKinds, Kernels> kernels_;
  jit::Kernel merge_kernel_;
  jit::Kernel shared_merge_kernel_;        // of plans that share prefixes
  std::optional<ExactMerge> exact_merge_;  // in place of the two
  std::unique_ptr<DeviceMods> mods_;       // its address is constant
  std::unique_ptr<DevicePlan> plan_;
  DeviceArray<float> workspace_o_;     // [workspace rows, v_dim]
  DeviceArray<float> workspace_lse_;   // [workspace rows]
  DeviceArray<char> workspace_exact_;  // [workspace rows] ExactRows, in place of the two
  std::uint64_t workspace_growths_ = 0;
  /// True until the first launch after a plan, which must not overlap: kernels read the plan before
  /// they wait for the kernel before them.
  bool is_fresh_ = true;
};

/// Plans the attends of a step, one for each kind of layers, over the same sequences. Their data
/// goes to the device in one copy.
class AttendPlanner {
 public:
  /// Makes room for plans within the limits of `kinds`.
  void reserve(std::span<const CudaAttend> kinds);
  /// True if `plan` would not wait: the device has taken everything that was sent before. A host
  /// that must not wait without a deadline polls this first.
  bool is_ready(std::span<const CudaAttend> kinds) const;
  /// Plans a step in place of the one before, on `stream`. Also sends the changes of the pages and
  /// of the mods' buffers, and compiles (or finds) the kernels that are missing.
  /// REQUIRES: sizes that have passed `check_plan`. This object lives until the device has planned.
  void plan(std::span<CudaAttend> kinds, PageLists& pages, const StepView& step,
            cudaStream_t stream);
  /// Bytes on the device.
  std::int64_t size_bytes() const { return static_cast<std::int64_t>(upload_.size_bytes()); }

 private:
  Upload upload_;
  std::vector<DevicePlan*> plans_;  // of the kinds
};

}  // namespace kvmesh::cuda
