// Columns of scores and outputs, which are query rows, in a thread and a warp of the latent kernel
// for float8 pages.
#pragma once

#include "core/cuda/device/warp.cuh"
#include "kernels/cuda/attend/hopper/latent_float8/latent_float8_shared.cuh"

namespace kvmesh::cuda {

/// This thread has columns 8 * j + 2 * t + c, where t is lane % 4.
struct ThreadColumns {
  static constexpr int kTiles = kRows / 8;
  /// Columns that are left to a lane when those of the 8 lanes with equal t are reduced together.
  static constexpr int kLeft = kTiles < 4 ? 1 : kTiles / 4;

  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static int column(int j, int c) { return 8 * j + lane() % 4 * 2 + c; }
  /// The numbers of columns 8 * j + 2 * t and the one after it.
  __device__ static float2 pair_at(const float* numbers, int j) {
    return *reinterpret_cast<const float2*>(numbers + column(j, 0));
  }

  /// Reduces this thread's columns, 2 * j + c in the place of j and c, over the lanes of equal t:
  /// those that differ in the bit `Mask` or in lower ones down to 4. At each bit either lane of a
  /// pair takes half of the columns.
  template <int Mask, int Count, class Op>
  __device__ static void over_lanes(const float (&columns)[Count], float (&left)[kLeft],
                                    const Op& op) {
    if constexpr (Mask < 4) {
#pragma unroll
      for (int i = 0; i < kLeft; ++i) left[i] = columns[i];
    } else if constexpr (Count == 1) {
      const float both[1] = {op(columns[0], __shfl_xor_sync(kAllLanes, columns[0], Mask))};
      over_lanes<Mask / 2>(both, left, op);
    } else {
      const bool upper = (lane() & Mask) != 0;
      float half[Count / 2];
#pragma unroll
      for (int i = 0; i < Count / 2; ++i) {
        const float low = columns[i], high = columns[Count / 2 + i];
        const float theirs = __shfl_xor_sync(kAllLanes, upper ? low : high, Mask);
        half[i] = op(upper ? high : low, theirs);
      }
      over_lanes<Mask / 2>(half, left, op);
    }
  }
  /// The column of number i of what remains.
  __device__ static int left_column(int i) {
    int place = i;
#pragma unroll
    for (int mask = 16, count = 2 * kTiles; mask >= 4 && count > 1; mask /= 2, count /= 2) {
      if ((lane() & mask) != 0) place += count / 2;
    }
    return column(place / 2, place % 2);
  }

  /// Writes the maxima of this warp's columns, of `number(i)` in the place of score i.
  template <class Number>
  __device__ static void put_maxima(float* columns, const Number& number) {
    const auto larger = [](float a, float b) { return fmaxf(a, b); };
    float top[2 * kTiles], left[kLeft];
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      const int first = i / 2 * 4 + i % 2;
      top[i] = larger(number(first), number(first + 2));
    }
    over_lanes<16>(top, left, larger);
#pragma unroll
    for (int i = 0; i < kLeft; ++i) columns[left_column(i)] = left[i];
  }
};

}  // namespace kvmesh::cuda
