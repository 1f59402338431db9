// attend_partial on a CUDA device.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <vector>

#include "kernels/cuda/attend_variant.hpp"
#include "kernels/cuda/device_work.hpp"
#include "kernels/cuda/kernel_store.hpp"
#include "kernels/cuda/plan_arrays.hpp"

namespace kvmesh::cuda {

/// The most that any plan of a captured graph will have.
struct AttendLimits {
  std::int64_t sequences = 0;
  std::int64_t queries = 1;  ///< of a sequence; with the group at most 64 rows
  std::int64_t pages = 0;    ///< of this rank, of all sequences together
};

/// The plan of a batch on one device, as AttentionPlan is on the CPU: made once a step, launched
/// once a layer. Movable; to be used by one thread at a time. The device must be current.
class CudaAttend {
 public:
  /// Plans, takes device memory and compiles (or finds) the kernels for tensors of `kinds`. Waits
  /// until the plan is on the device.
  /// @throws InvalidArgument on a batch or a shape that does not fit together; CudaError.
  CudaAttend(KernelStore& kernels, const AttentionShape& shape, const AttentionBatch& batch,
             const AttentionOptions& options, const TensorKinds& kinds);

  /// For graphs: takes all memory that plans within `limits` need, and launches grids of one size
  /// from now on, so that a graph in which `launch` was captured computes whatever was planned
  /// last.
  /// @throws InvalidArgument if the limits are not those of short query chunks; CudaError.
  CudaAttend(KernelStore& kernels, const AttentionShape& shape, const AttentionOptions& options,
             const TensorKinds& kinds, const AttendLimits& limits);

  /// Plans another batch of the same shape, with the same mods, in place: after what is on
  /// `stream`, before what comes there. `block_mask` as in AttentionOptions. Allocates nothing if
  /// it was made with limits. @throws InvalidArgument, also past the limits, before anything has
  /// changed.
  void plan(const AttentionBatch& batch, const LocalBlockMask* block_mask, cudaStream_t stream);

  /// Starts attention of `q` [tokens, q_heads, k_dim] over the pool into `out`, all on the device,
  /// after what is on `stream`. Allocates nothing and does not wait; may be captured in a graph.
  /// Every bit of the result depends on the batch and the device's kind alone. Tensors of other
  /// kinds than planned for cost a compilation at their first launch.
  /// Launches at most three kernels: short rows, long rows, the merge of splits.
  /// With limits, tensors may have room for more tokens than are planned.
  /// @throws InvalidArgument before anything is launched.
  void launch(const ConstTensorView& q, const ConstKvPool& pool, const Partial& out,
              cudaStream_t stream);

  std::int64_t tokens() const { return tokens_; }
  TileCounts tiles() const { return tiles_; }
  /// Device memory of the partials of splits, and of the plan itself.
  std::int64_t workspace_bytes() const;
  std::int64_t plan_bytes() const;

 private:
  /// The kernels of both launches for one kind of tensors.
  struct Kernels {
    AttendVariant variants[2];
    jit::Kernel kernels[2];
  };
  /// One launch's tasks on the device.
  struct DeviceLaunch {
    DeviceArray<DeviceTask> tasks;
    DeviceArray<std::int32_t> task_begin;  // [grid + 1]
    int grid = 0;                          // thread blocks, those without a task included
  };

  CudaAttend(KernelStore& kernels, const AttentionShape& shape, const AttentionOptions& options,
             const TensorKinds& kinds, std::int64_t short_rows);
  const Kernels& kernels_for(const TensorKinds& kinds);
  AttendVariant variant_of(const TensorKinds& kinds, int row_class) const;
  LaunchShape launch_shape(int launch) const;
  void reserve(const AttendLimits& limits);
  void pad_to_limits(DeviceWork& work) const;
  void upload_mods();
  void upload(const DeviceWork& work, const std::vector<std::int32_t>& positions,
              cudaStream_t stream);
  void launch_merge(const Partial& out, cudaStream_t stream) const;

  KernelStore* store_;
  AttentionShape shape_;
  AttentionOptions options_;
  TensorKinds kinds_;
  float scale_;
  bool fold_scale_;
  bool has_head_classes_;
  CudaMods mods_;
  int row_classes_[2];  // of the launches
  bool has_limits_ = false;
  std::int64_t tokens_ = 0;
  std::int32_t max_page_ = -1;
  TileCounts tiles_;
  std::map<TensorKinds, Kernels> kernels_;
  jit::Kernel merge_kernel_;

  Staging staging_;
  DeviceLaunch launches_[2];  // short rows, long rows
  DeviceArray<DeviceVisit> visits_;
  DeviceArray<std::uint8_t> head_classes_;
  DeviceArray<std::int32_t> positions_;  // [tokens]
  DeviceArray<DeviceMerge> merges_;
  int merge_count_ = 0;
  int merge_rows_ = 0;                // of the largest merge
  DeviceArray<float> workspace_o_;    // [workspace rows, v_dim]
  DeviceArray<float> workspace_lse_;  // [workspace rows]
  std::vector<DeviceBuffer> mod_data_;
  ModBuffers mod_buffers_{};
};

}  // namespace kvmesh::cuda
