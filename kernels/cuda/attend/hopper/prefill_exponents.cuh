// The exponents of a prefill tile's scores.
#pragma once

#include "kernels/cuda/attend/common/softmax.cuh"
#include "kernels/cuda/attend/hopper/prefill_tile.hpp"

namespace kvmesh::cuda {

/// A thread's scores of a tile: of two rows, h, columns 8 * j + 2 * t + c at 4 * j + 2 * h + c.
using Scores = float[kPrefillKeys / 2];
constexpr int kKeyTiles = kPrefillKeys / 8;
/// How far a score may exceed the reference, as a power of 2: weights up to 2^8, and sums of them,
/// lose nothing, being floating-point numbers.
constexpr float kSlack = 8.0f;
constexpr float kMostWeight = 256.0f;

/// What the exponents of a thread's two rows refer to, and what they sum up to.
struct RowExponents {
  float reference[2] = {kNoKeys, kNoKeys};  // near the maximum, in the scores' units
  float sum[2] = {0.0f, 0.0f};  // of weights, over this thread's columns, until the piece ends

  __device__ bool has_no_reference() const {
    return reference[0] == kNoKeys || reference[1] == kNoKeys;
  }

  /// Turns scores into weights exp(score - reference), with a reference that no score exceeds by
  /// more than `slack` (log 2). Returns whether it was raised; then what the rows have so far is to
  /// be multiplied by `keep`.
  __device__ bool softmax(Scores& s, float scale, float slack, float (&keep)[2]) {
    float top[2] = {s[0], s[2]};
#pragma unroll
    for (int i = 1; i < kPrefillKeys / 2; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]);
    slack /= scale;
    const bool raised =
        __any_sync(kAllLanes, top[0] > reference[0] + slack || top[1] > reference[1] + slack);
    if (raised) {
#pragma unroll
      for (int h = 0; h < 2; ++h) raise(top[h], h, scale, keep[h]);
    }
    float sums[2];
    exponentiate(s, scale, sums);
    return raised;
  }

  /// By the reference that there is. `sums`: this tile's, of this thread's columns.
  __device__ void exponentiate(Scores& s, float scale, float (&sums)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      // Nothing visible yet: -inf - -inf must not be computed. A NaN is no maximum, but stays one.
      const float shift = reference[h] == kNoKeys ? 0.0f : reference[h] * scale;
      float total[2] = {0.0f, 0.0f};
#pragma unroll
      for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = s[4 * j + 2 * h + c];
          score = ex2_approx(score * scale - shift);
          total[c] += score;
        }
      }
      sums[h] = total[0] + total[1];
      sum[h] += sums[h];
    }
  }

  __device__ void raise(float top, int h, float scale, float& keep) {
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
    top = fmaxf(top, reference[h]);
    const float shift = top == kNoKeys ? 0.0f : top * scale;
    // Exactly 1 while the reference stands: thousands of steps of a rounded 1 would add up.
    keep = reference[h] == top ? 1.0f : ex2_approx(reference[h] * scale - shift);
    reference[h] = top;
    sum[h] *= keep;
  }
};

}  // namespace kvmesh::cuda
