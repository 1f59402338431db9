// Conversions between float32 and pairs of 16-bit elements, for nvcc and NVRTC.
#pragma once

#include <cstdint>

namespace kvmesh::cuda {

/// Two floats rounded to nearest even; `low` in the low half.
__device__ inline std::uint32_t cvt_rn_bf16x2(float low, float high) {
  std::uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ inline std::uint32_t cvt_rn_f16x2(float low, float high) {
  std::uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ inline float cvt_f32_f16(std::uint16_t half) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
}

}  // namespace kvmesh::cuda
