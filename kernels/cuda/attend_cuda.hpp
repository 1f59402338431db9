// attend_partial on a CUDA device.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <optional>

#include "kernels/cuda/attend_variant.hpp"
#include "kernels/cuda/device_buffer.hpp"
#include "kernels/cuda/device_work.hpp"
#include "kernels/cuda/kernel_store.hpp"

namespace kvmesh::cuda {

/// The plan of one batch on one device, as AttentionPlan is on the CPU: made once a step, launched
/// once a layer. Movable; to be used by one thread at a time. The device must be current.
class CudaAttend {
 public:
  /// Plans, takes device memory and compiles (or finds) the kernels for tensors of `kinds`.
  /// @throws InvalidArgument on a batch or a shape that does not fit together; CudaError.
  CudaAttend(KernelStore& kernels, const AttentionShape& shape, const AttentionBatch& batch,
             const AttentionOptions& options, const TensorKinds& kinds);

  /// Starts attention of `q` [tokens, q_heads, k_dim] over the pool into `out`, all on the device,
  /// after what is on `stream`. Allocates nothing and does not wait; may be captured in a graph.
  /// Every bit of the result depends on the batch and the device's kind alone. Tensors of other
  /// kinds than planned for cost a compilation at their first launch.
  /// Launches at most three kernels: short rows, long rows, the merge of splits.
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
    DeviceBuffer tasks;       // [tasks] DeviceTask
    DeviceBuffer task_begin;  // [blocks + 1] int32
    int blocks = 0;
  };

  const Kernels& kernels_for(const TensorKinds& kinds);
  AttendVariant variant_of(const TensorKinds& kinds, int row_class) const;
  LaunchShape launch_shape(const TensorKinds& kinds, int launch) const;
  void upload_work(const DeviceWork& work);
  void upload_mods();
  void launch_merge(const Partial& out, cudaStream_t stream) const;

  KernelStore* store_;
  AttentionShape shape_;
  float scale_;
  bool fold_scale_;
  int first_head_;
  CudaMods mods_;
  int row_classes_[2];  // of the launches
  std::int64_t tokens_ = 0;
  std::int32_t max_page_ = -1;
  TileCounts tiles_;
  std::map<TensorKinds, Kernels> kernels_;
  jit::Kernel merge_kernel_;

  DeviceLaunch launches_[2];   // short rows, long rows
  DeviceBuffer visits_;        // [visits] DeviceVisit
  DeviceBuffer head_classes_;  // [...] uint8
  DeviceBuffer positions_;     // [tokens] int32
  DeviceBuffer merges_;        // [merge_count_] DeviceMerge
  int merge_count_ = 0;
  int merge_rows_ = 0;          // of the largest merge
  DeviceBuffer workspace_o_;    // [workspace rows, v_dim] float32
  DeviceBuffer workspace_lse_;  // [workspace rows] float32
  std::vector<DeviceBuffer> mod_data_;
  ModBuffers mod_buffers_{};
};

}  // namespace kvmesh::cuda
