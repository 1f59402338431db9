// Scores as exponents of 2, for the kernels with tensor cores.
//
// Constants (namespace kvmesh): kFoldScale (no score mod and scale > 0: the scale goes into the
// exponent).
#pragma once

#include "core/cuda/device/warp.cuh"
#include "kernels/cuda/attend/common/rows.cuh"

namespace kvmesh::cuda {

/// The factor that turns a score, or a difference of scores, into an exponent of 2.
__device__ inline float exponent_scale(const AttendParams& p) {
  return kFoldScale ? p.scale * kLog2E : kLog2E;
}

/// The reference of exponents, from a maximum of scores. A score mod may return float32's least
/// number, whose multiple would overflow: then it stays in the scores' units.
__device__ inline float exponent_shift(float max, float scale) {
  // Nothing visible yet: -inf - -inf must not be computed. A NaN is no maximum, but stays one.
  const float shift = max == kNoKeys ? 0.0f : max;
  return kFoldScale ? shift * scale : shift;
}
__device__ inline float weight_of(float score, float scale, float shift) {
  return ex2_approx(kFoldScale ? score * scale - shift : (score - shift) * scale);
}

/// Natural, from a maximum of scores and a sum relative to it. `scale` is that of the exponents.
__device__ inline float log_sum_exp(float scale, float max, float sum) {
  if (sum == 0.0f) return kNoKeys;
  const float shift = max == kNoKeys ? 0.0f : kFoldScale ? max * scale * kLn2 : max;
  return shift + logf(sum);
}
__device__ inline float log_sum_exp(const AttendParams& p, float max, float sum) {
  return log_sum_exp(exponent_scale(p), max, sum);
}

}  // namespace kvmesh::cuda
