// The scale of float8 pages whose rows have none of their own.
//
// Constants of the kernel (namespace kvmesh), beside those of attend/common: kRowScales.
#pragma once

#include "kernels/cuda/attend/common/rows.cuh"
#include "kernels/cuda/attend/plain/plain_params.hpp"

namespace kvmesh::cuda {

/// Returns that of a task's head, or the one for all heads; 1 of other pages. It is read once for a
/// piece, since a task has one head.
__device__ inline float task_scale(const DeviceScale& scale, const DeviceTask& task) {
  if constexpr (kRowScales || kPoolType != Dtype::kFloat8E4M3) return 1.0f;
  if (scale.per_token == nullptr) return scale.number;
  return scale.per_token[pool_head(task) * scale.head_stride];
}

}  // namespace kvmesh::cuda
