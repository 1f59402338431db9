// Scores as exponents of 2, for the kernels with tensor cores.
//
// Constants (namespace kvmesh): kFoldScale (no score mod and scale > 0: the scale goes into the
// exponent).
#pragma once

#include "core/cuda/warp.cuh"
#include "kernels/cuda/attend/common/rows.cuh"

namespace kvmesh::cuda {

/// What a score is multiplied by in the exponent of 2.
__device__ inline float exponent_scale(const AttendParams& p) {
  if constexpr (kFoldScale) {
    return p.scale * kLog2E;
  } else {
    return 1.0f;
  }
}

/// Natural, from a maximum in the scores' units and a sum relative to it.
__device__ inline float log_sum_exp(const AttendParams& p, float max, float sum) {
  if (sum == 0.0f) return kNoKeys;
  const float shift = max == kNoKeys ? 0.0f : max * exponent_scale(p) * kLn2;
  return shift + logf(sum);
}

}  // namespace kvmesh::cuda
