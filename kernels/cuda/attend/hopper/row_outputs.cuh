// The outputs of a thread's two rows, for kernels whose accumulators have query rows as rows: of
// row h the thread has columns 8 * n + 2 * t + c at 4 * n + 2 * h + c, where t = lane % 4.
//
// The code that stores a row is long, so there is one for both: first it stores the first row, then
// the second one, which takes the first one's place.
#pragma once

#include "core/cuda/device/warp.cuh"
#include "kernels/cuda/attend/common/output.cuh"

namespace kvmesh::cuda {

/// Puts the second row in the place of the first.
template <int N>
__device__ __forceinline__ void take_second_row(float (&o)[N]) {
#pragma unroll
  for (int n = 0; n < N / 4; ++n) {
    o[4 * n] = o[4 * n + 2];
    o[4 * n + 1] = o[4 * n + 3];
  }
}

/// Stores the first row times `factor`, from column `first` of `to` on.
template <int N>
__device__ __forceinline__ void store_pairs(const OutputRow& to, int first, const float (&o)[N],
                                            float factor) {
  to.put_pairs<N / 4, 8>(first + threadIdx.x % 4 * 2, [&](int n) {
    return float2{o[4 * n] * factor, o[4 * n + 1] * factor};
  });
}

/// The same for rows that have units; without the stores unless `is_there`. Four lanes have a row.
/// They exchange their columns of 32, so that each stores 8 in a row. REQUIRES: called by a whole
/// warp.
template <int N>
__device__ __forceinline__ void store_units(const OutputRow& to, const float (&o)[N], float factor,
                                            bool is_there) {
  const int c = threadIdx.x % 4;
#pragma unroll
  for (int q = 0; q < N / 16; ++q) {
    std::uint32_t x[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int at = 4 * (4 * q + j);
      x[j] = to.pair_of(o[at] * factor, o[at + 1] * factor);
    }
    exchange_halves(x[0], x[1], 1);
    exchange_halves(x[2], x[3], 1);
    exchange_halves(x[0], x[2], 2);
    exchange_halves(x[1], x[3], 2);
    if (is_there) to.put_unit(q * 32 + c * 8, uint4{x[0], x[1], x[2], x[3]});
  }
}

/// The same for rows that have quads: each lane stores 4 columns of 16 in a row. Single elements
/// took 6 us for 128 rows of 128 on each multiprocessor of an H200.
template <int N>
__device__ __forceinline__ void store_quads(const OutputRow& to, const float (&o)[N], float factor,
                                            bool is_there) {
  const int c = threadIdx.x % 4;
#pragma unroll
  for (int q = 0; q < N / 8; ++q) {
    unsigned x[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[j] = __float_as_uint(o[8 * q + 4 * (j / 2) + j % 2] * factor);
    }
    exchange_halves(x[0], x[2], 1);
    exchange_halves(x[1], x[3], 1);
    if (is_there) {
      to.put_quad(q * 16 + c / 2 * 4 + c % 2 * 8,
                  float4{__uint_as_float(x[0]), __uint_as_float(x[1]), __uint_as_float(x[2]),
                         __uint_as_float(x[3])});
    }
  }
}

}  // namespace kvmesh::cuda
