// What the benchmark measures with: random data, and the ceiling.
#pragma once

#include "tests/gpu/bench_params.hpp"

/// bfloat16 values, uniform in [-1, 1): a hash of the index, so that no two rows are alike.
extern "C" __global__ void fill_random(const __grid_constant__ kvmesh::test::BenchParams params) {
  const long long stride = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < params.units; i += stride) {
    unsigned words[4];
    for (int w = 0; w < 4; ++w) {
      unsigned x = static_cast<unsigned>(i * 4 + w) * 2654435761u + params.seed;
      x ^= x >> 16;
      x *= 2246822519u;
      x ^= x >> 13;
      const float low = static_cast<float>(x & 0xFFFFu) * (1.0f / 32768.0f) - 1.0f;
      const float high = static_cast<float>(x >> 16) * (1.0f / 32768.0f) - 1.0f;
      words[w] = __float_as_uint(low) >> 16 | (__float_as_uint(high) & 0xFFFF0000u);
    }
    params.data[i] = {words[0], words[1], words[2], words[3]};
  }
}

/// Streams through the buffer: 16-byte loads, 8 on their way a thread.
extern "C" __global__ void __launch_bounds__(512)
    read_all(const __grid_constant__ kvmesh::test::BenchParams params) {
  const long long stride = static_cast<long long>(gridDim.x) * blockDim.x;
  unsigned sum = 0;
  for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
       i + 7 * stride < params.units; i += 8 * stride) {
    kvmesh::test::BenchUnit units[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) units[j] = params.data[i + j * stride];
#pragma unroll
    for (int j = 0; j < 8; ++j) sum ^= units[j].x ^ units[j].y ^ units[j].z ^ units[j].w;
  }
  if (sum == params.seed) params.data[0].x = sum;  // keeps the loads
}
