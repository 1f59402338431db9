// Elements of a tensor whose dtype is a constant of the kernel.
#pragma once

#include <cstdint>

#include "core/pod/float8.hpp"
#include "kernels/cuda/common/ptx.cuh"
#include "kvmesh/dtype.hpp"

namespace kvmesh::cuda {

template <Dtype Type>
__device__ inline float load_element(const void* from, std::int64_t index) {
  if constexpr (Type == Dtype::kFloat32) {
    return static_cast<const float*>(from)[index];
  } else if constexpr (Type == Dtype::kFloat8E4M3) {
    const std::uint8_t bits = static_cast<const std::uint8_t*>(from)[index];
#if __CUDA_ARCH__ >= 890
    return cvt_f32_f16(static_cast<std::uint16_t>(cvt_rn_f16x2_e4m3x2<0>(bits)));
#else
    return float8_to_float(bits);
#endif
  } else {
    const std::uint16_t bits = static_cast<const std::uint16_t*>(from)[index];
    if constexpr (Type == Dtype::kFloat16) return cvt_f32_f16(bits);
    static_assert(Type == Dtype::kFloat16 || Type == Dtype::kBFloat16);
    return __uint_as_float(static_cast<std::uint32_t>(bits) << 16);
  }
}

/// Packs two neighbours into 32 bits, rounded to nearest even.
template <Dtype Type>
__device__ inline std::uint32_t pack_pair(float low, float high) {
  static_assert(Type == Dtype::kFloat16 || Type == Dtype::kBFloat16);
  if constexpr (Type == Dtype::kFloat16) return cvt_rn_f16x2(low, high);
  return cvt_rn_bf16x2(low, high);
}

/// Unpacks the lower (`Half` 0) or upper neighbour of a pair.
template <Dtype Type, int Half>
__device__ inline float unpack_half(std::uint32_t pair) {
  static_assert(Type == Dtype::kFloat16 || Type == Dtype::kBFloat16);
  if constexpr (Type == Dtype::kFloat16) {
    return cvt_f32_f16(static_cast<std::uint16_t>(Half == 0 ? pair & 0xFFFFu : pair >> 16));
  }
  return __uint_as_float(Half == 0 ? pair << 16 : pair & 0xFFFF0000u);
}

/// Converts eight neighbours to 16-bit elements of type `To`.
template <Dtype From, Dtype To>
__device__ inline uint4 load_unit(const void* from, std::int64_t index) {
  const auto pair = [&](int i) {
    return pack_pair<To>(load_element<From>(from, index + i),
                         load_element<From>(from, index + i + 1));
  };
  return {pair(0), pair(2), pair(4), pair(6)};
}

template <Dtype Type>
__device__ inline void store_element(void* to, std::int64_t index, float value) {
  if constexpr (Type == Dtype::kFloat32) {
    static_cast<float*>(to)[index] = value;
  } else {
    static_cast<std::uint16_t*>(to)[index] =
        static_cast<std::uint16_t>(pack_pair<Type>(value, 0.0f));
  }
}

}  // namespace kvmesh::cuda
