// A warp's lanes together.
#pragma once

namespace kvmesh::cuda {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

__device__ inline float warp_max(float value) {
  for (int step = 16; step > 0; step /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, step));
  }
  return value;
}

__device__ inline float warp_sum(float value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

/// `value`, which all lanes have alike. The compiler sees that it is so after a shuffle, and keeps
/// it, and addresses and operands that depend on it, in registers of the warp.
__device__ inline int uniform(int value) { return __shfl_sync(kAllLanes, value, 0); }

/// Two lanes whose numbers differ in `bit` exchange values: the one without the bit gives its
/// `high` for the other's `low`.
__device__ inline void exchange_halves(unsigned& low, unsigned& high, int bit) {
  const bool has_bit = (threadIdx.x & bit) != 0;
  const unsigned got = __shfl_xor_sync(kAllLanes, has_bit ? low : high, bit);
  low = has_bit ? got : low;
  high = has_bit ? high : got;
}

}  // namespace kvmesh::cuda
