// attend_partial on a CUDA device.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <optional>

#include "kernels/attend_checks.hpp"
#include "kernels/cuda/attend/family.hpp"
#include "kernels/cuda/common/kernel_store.hpp"
#include "kernels/cuda/plan/device_plan.hpp"

namespace kvmesh::cuda {

/// The plan of a batch on one device, as AttentionPlan is on the CPU, and the kernels that run it:
/// planned once a step, launched once a layer. Movable; to be used by one thread at a time. The
/// device must be current.
class CudaAttend {
 public:
  struct Options {
    AttentionOptions attention{};           ///< without a block mask
    const BlockMask* block_mask = nullptr;  ///< copied to the device
    /// The tensors that kernels are made ready for. Others cost a compilation at their first
    /// launch.
    TensorKinds kinds{};
    /// For short rows, the most rows (queries x query heads of a kv head) of a sequence that are
    /// expected; longer ones are prefill.
    std::int64_t short_rows = 1;
    /// For graphs: takes all memory that plans within the limits need, and launches grids of one
    /// size, so that a graph in which `launch` was captured computes whatever was planned last.
    std::optional<AttendLimits> limits{};
  };

  /// @throws InvalidArgument on a shape that no kernel takes, or limits that are not those of short
  /// query chunks; CudaError.
  CudaAttend(KernelStore& kernels, const AttentionShape& shape, const Options& options);

  /// Plans a step, in place of the one before: after what is on `stream`, before what comes there.
  /// The pages' changes go along, and what was set of the mods' buffers. Compiles (or finds) the
  /// kernels that are missing.
  /// @throws InvalidArgument, also past the limits, before anything has changed.
  void plan(PageLists& pages, const StepView& step, cudaStream_t stream);
  /// Whether `plan` would go on without waiting for the device, which has yet to take what was sent
  /// to it before. A host that must not wait for ever asks first.
  bool is_ready() const { return mods_->is_taken() && plan_->is_ready(); }

  /// @throws InvalidArgument if `launch` would, of its `out`.
  void check_output(const AttendedRows& out) const;
  /// Starts attention of `q` [tokens, q_heads, k_dim] over the pool into `out`, all on the device,
  /// after what is on `stream`. Allocates nothing and does not wait; may be captured in a graph,
  /// but for tensors of other kinds than Options::kinds, whose first launch compiles. REQUIRES:
  /// launches and replays of one CudaAttend come one after another, and `plan` after them: they
  /// share the workspace and the counters of claims. Every bit of the result depends on the batch
  /// and the device's kind alone. Launches at most three kernels: short rows, long rows, the merge
  /// of splits. With limits, tensors have as many tokens as those have room for. `sinks` [q_heads]
  /// may be empty: of the sequences whose sinks this rank counts, the rows include them.
  /// @throws InvalidArgument before anything is launched.
  void launch(const ConstTensorView& q, const ConstKvPool& pool, const AttendedRows& out,
              cudaStream_t stream, const ConstTensorView& sinks = {});
  /// The same, with rows stored where the combine of several ranks wants them. REQUIRES: the step
  /// was planned with `merges_all`. The last kernel lets the next begin as CombineWay::run_sent
  /// requires.
  void launch(const ConstTensorView& q, const ConstKvPool& pool, const CombineTarget& to,
              cudaStream_t stream, const ConstTensorView& sinks = {});

  const DevicePlan& current() const { return *plan_; }
  /// Changes when graphs that were captured before become invalid.
  std::uint64_t generation() const { return plan_->generation() + workspace_growths_; }
  /// Device memory of the partials of splits, and of the plan itself with its mods' buffers.
  std::int64_t workspace_bytes() const;
  std::int64_t plan_bytes() const {
    return plan_->size_bytes() + static_cast<std::int64_t>(mods_->size_bytes());
  }

 private:
  /// The kernels of both launches for one kind of tensors.
  struct Kernels {
    AttendVariant variants[2];
    jit::Kernel kernels[2];
  };

  const Kernels& kernels_for(const TensorKinds& kinds);
  AttendVariant variant_of(const TensorKinds& kinds, int row_class) const;
  LaunchShape launch_shape(int row_class) const;
  /// Kernels that write `out`, unless `to` has ranks.
  struct Rows {
    AttendOutput out{};
    CombineTarget to{};
  };
  void launch_to(const Rows& rows, const ConstTensorView& q, const ConstKvPool& pool,
                 const ConstTensorView& sinks, cudaStream_t stream);
  AttendParams params_of(const ConstTensorView& q, const ConstKvPool& pool, const AttendOutput& out,
                         const ConstTensorView& sinks) const;
  void reserve_workspace();
  void launch_merge(const Rows& rows, const ConstTensorView& sinks, cudaStream_t stream) const;

  KernelStore* store_;
  AttentionShape shape_;
  AttentionShape planned_;
  TensorKinds kinds_;
  float scale_;
  bool fold_scale_;
  bool has_head_classes_;
  int first_head_;
  int row_classes_[2];  // of the launches
  std::int32_t max_page_ = -1;
  std::map<TensorKinds, Kernels> kernels_;
  jit::Kernel merge_kernel_;
  std::unique_ptr<DeviceMods> mods_;  // stays where it is
  std::unique_ptr<DevicePlan> plan_;
  DeviceArray<float> workspace_o_;    // [workspace rows, v_dim]
  DeviceArray<float> workspace_lse_;  // [workspace rows]
  std::uint64_t workspace_growths_ = 0;
  /// No launch since the plan: kernels read the plan before they wait for the kernel before them,
  /// so the first is not launched to overlap.
  bool is_fresh_ = true;
};

}  // namespace kvmesh::cuda
