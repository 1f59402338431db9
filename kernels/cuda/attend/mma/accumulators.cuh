// Online softmax and the outputs of a warp's rows, in registers.
#pragma once

#include "kernels/cuda/attend/mma/config.cuh"

namespace kvmesh::cuda {

class Accumulators {
 public:
  float o[kRowTiles][kValueTiles][4];  // relative to max, not yet normalised; as Scores' tiles
  float max[kRowTiles][2];             // of rows g and g + 8 of a tile, in the scores' units
  float sum[kRowTiles][2];             // over this thread's columns only

  __device__ void clear() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kValueTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) o[m][n][i] = 0.0f;
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        max[m][h] = kNoKeys;
        sum[m][h] = 0.0f;
      }
    }
  }

  /// Turns scores into weights exp(score - max) and rescales the rows' sums and outputs.
  __device__ void softmax(Scores& s, float scale, Weights& weights) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      float keep[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) keep[h] = softmax_row(s, m, h, scale);
#pragma unroll
      for (int n = 0; n < 2 * kKeyPairs; ++n) {
        weights[m][n / 2][n % 2 * 2] = pack_pair<kPoolType>(s[m][n][0], s[m][n][1]);
        weights[m][n / 2][n % 2 * 2 + 1] = pack_pair<kPoolType>(s[m][n][2], s[m][n][3]);
      }
      rescale(m, keep);
    }
  }

  /// o += weights * values, for a step whose values lie at a shared address.
  __device__ void add_values(std::uint32_t values, const Weights& weights, int lane) {
    const std::uint32_t from = kRowsV.unit(values, lane % 16, lane / 16);
#pragma unroll
    for (int pair = 0; pair < kKeyPairs; ++pair) {
#pragma unroll
      for (int n = 0; n < kValueTiles; n += 2) {
        std::uint32_t b[4];
        ldmatrix_x4_trans(b, kRowsV.further(from, n) + kRowsV.bytes(pair * 16));
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma(o[m][n], weights[m][pair], b[0], b[1]);
          mma(o[m][n + 1], weights[m][pair], b[2], b[3]);
        }
      }
    }
  }

  /// True if a product spoiled a row whose weights are all finite.
  __device__ bool spoilt() const {
    bool found = false;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float probe = 0.0f;
#pragma unroll
        for (int n = 0; n < kValueTiles; ++n) {
          probe += o[m][n][2 * h] * 0.0f + o[m][n][2 * h + 1] * 0.0f;
        }
        found |= probe != probe && sum[m][h] == sum[m][h];
      }
    }
    return found;
  }

  /// As add_values, one key at a time, without keys that have no weight in a row.
  __device__ void add_values_carefully(std::uint32_t values, const Weights& weights, int lane) {
#pragma unroll
    for (int n = 0; n < 2 * kKeyPairs; ++n) {
#pragma unroll 1
      for (int j = 0; j < 8; ++j) {
        const int key = n * 8 + j;
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const std::uint32_t pair =
                __shfl_sync(kAllLanes, weights[m][n / 2][n % 2 * 2 + h], lane / 4 * 4 + j / 2);
            const float weight =
                j % 2 == 0 ? unpack_half<kPoolType, 0>(pair) : unpack_half<kPoolType, 1>(pair);
            if (weight != 0.0f) add_value(m, h, weight, values, key, lane % 4);
          }
        }
      }
    }
  }

  /// Sum over a whole row.
  __device__ float row_sum(int m, int h) const {
    float total = sum[m][h];
    total += __shfl_xor_sync(kAllLanes, total, 1);
    total += __shfl_xor_sync(kAllLanes, total, 2);
    return total;
  }

 private:
  /// Returns the factor for the row's former sum and outputs.
  __device__ float softmax_row(Scores& s, int m, int h, float scale) {
    float top = max[m][h];
#pragma unroll
    for (int n = 0; n < 2 * kKeyPairs; ++n) {
      top = fmaxf(top, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
    }
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
    const float shift = exponent_shift(top, scale);
    // Exactly 1 while the maximum stands: the difference, fused, is not 0, and thousands of steps
    // of it would add up.
    const float keep = max[m][h] == top ? 1.0f : weight_of(max[m][h], scale, shift);
    max[m][h] = top;
    float total = 0.0f;
#pragma unroll
    for (int n = 0; n < 2 * kKeyPairs; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& score = s[m][n][2 * h + e];
        score = weight_of(score, scale, shift);
        total += score;
      }
    }
    sum[m][h] = sum[m][h] * keep + total;
    return keep;
  }

  // Maxima soon stop rising; then there is nothing to multiply.
  __device__ void rescale(int m, const float (&keep)[2]) {
    if (__all_sync(kAllLanes, keep[0] == 1.0f && keep[1] == 1.0f)) return;
#pragma unroll
    for (int n = 0; n < kValueTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o[m][n][i] *= keep[i / 2];
    }
  }

  __device__ void add_value(int m, int h, float weight, std::uint32_t values, int key, int pair) {
#pragma unroll
    for (int n = 0; n < kValueTiles; ++n) {
      const std::uint32_t value = ld_shared_u32(kRowsV.unit(values, key, n) + pair * 4);
      o[m][n][2 * h] += weight * unpack_half<kPoolType, 0>(value);
      o[m][n][2 * h + 1] += weight * unpack_half<kPoolType, 1>(value);
    }
  }
};

}  // namespace kvmesh::cuda
