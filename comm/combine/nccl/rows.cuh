// Rows of floats, handled by a warp each: loads, stores, and the log-sum-exp among ranks.
#pragma once

#include <cstdint>

#include "comm/combine/half_bits.cuh"
#include "comm/combine/nccl/combine_params.hpp"
#include "core/cuda/device/warp.cuh"
#include "core/pod/row_merge.hpp"

namespace kvmesh::cuda {

constexpr int kWarp = 32;

__device__ inline int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }

/// `Width` neighbours: 4 where all rows begin at 16 bytes, else 1.
template <int Width>
struct Floats {
  float v[Width];
};

template <int Width>
__device__ inline Floats<Width> load(const float* from) {
  if constexpr (Width == 4) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    return {{four.x, four.y, four.z, four.w}};
  } else {
    return {{*from}};
  }
}

template <int Width>
__device__ inline void store(float* to, const Floats<Width>& values) {
  if constexpr (Width == 4) {
    *reinterpret_cast<float4*>(to) =
        make_float4(values.v[0], values.v[1], values.v[2], values.v[3]);
  } else {
    *to = values.v[0];
  }
}

/// Converts to the output's dtype, which is the same for all threads.
template <int Width>
__device__ inline void store_as(Dtype dtype, void* to, std::int64_t at,
                                const Floats<Width>& values) {
  if (dtype == Dtype::kFloat32) {
    store(static_cast<float*>(to) + at, values);
    return;
  }
  auto* halves = static_cast<std::uint16_t*>(to) + at;
  if constexpr (Width == 4) {
    *reinterpret_cast<ushort4*>(halves) =
        make_ushort4(half_bits(values.v[0], dtype), half_bits(values.v[1], dtype),
                     half_bits(values.v[2], dtype), half_bits(values.v[3], dtype));
  } else {
    *halves = half_bits(values.v[0], dtype);
  }
}

/// Computes the same as kvmesh::merged_lse, with the exponentials of 32 ranks at once, and sums in
/// rank order. `lse_of(rank)` may be called by one lane only. Every lane gets the result.
template <class LseOf>
__device__ inline float merged_lse(int ranks, const LseOf& lse_of) {
  const int lane = lane_id();
  float max = kNoKeys;
  for (int r = lane; r < ranks; r += kWarp) max = fmaxf(max, lse_of(r));
  const float shift = merge_shift(warp_max(max));
  float sum = 0.0f;
  for (int first = 0; first < ranks; first += kWarp) {
    const int r = first + lane;
    const float term = r < ranks ? expf(lse_of(r) - shift) : 0.0f;
    for (int i = 0; i < min(kWarp, ranks - first); ++i) {
      sum = __fadd_rn(sum, __shfl_sync(kAllLanes, term, i));
    }
  }
  return shift + logf(sum);  // without a key: 0 + log 0
}

/// Computes the same as kvmesh::merge_weight.
__device__ inline float merge_weight(float lse, float merged) {
  return kvmesh::merge_weight(lse, merged, [](float x) { return expf(x); });
}

}  // namespace kvmesh::cuda
