// Kernels for the tests of the compiler: one without local memory, one that needs it.
//
// Constants of the kernel: kFactor, kOffset, kShift.
#pragma once

#include <cstdint>

namespace kvmesh {

struct SampleParams {
  const float* x;
  float* y;
  std::int32_t count;
};

extern "C" __global__ void scale_shift(const __grid_constant__ SampleParams p) {
  // Neighbours exchange their numbers, so that there is shared memory to report.
  __shared__ float given[128];
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  given[threadIdx.x] = i < p.count ? p.x[i] * kFactor : 0.0f;
  __syncthreads();
  if ((i ^ 1) < p.count) p.y[i ^ 1] = given[threadIdx.x ^ 1] + (kShift ? kOffset : 0);
}

/// An array that is indexed at run time cannot be in registers.
extern "C" __global__ void through_local_memory(const __grid_constant__ SampleParams p) {
  float values[1000];
  for (int i = 0; i < 1000; ++i) values[i] = p.x[i];
  for (int i = 0; i < 1000; ++i) p.y[i] = values[(i * p.count) % 1000];
}

}  // namespace kvmesh
