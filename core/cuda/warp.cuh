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

}  // namespace kvmesh::cuda
