// The weights of a chunk: powers of two times exp(score - exponent * ln 2), where the exponent
// follows from the chunk's own largest score. So they are the same on every rank and in every warp.
#pragma once

#include "kernels/cuda/attend/exact/config.cuh"

namespace kvmesh::cuda {

/// A chunk's weights for the two rows of a thread.
struct ChunkWeights {
  std::int32_t exponent[2];
  float sum[2];        // of the weights before they are rounded; 0: the row sees no key
  std::uint32_t b[2];  // rounded, as mma takes them: keys 2t and 2t + 1 of row g, 8 keys each
};

/// Returns the larger one of `value` over the 8 lanes that have the same rows; NaN if one is.
__device__ inline float largest_of_keys(float value) {
#pragma unroll
  for (int bit = 4; bit < 32; bit *= 2) {
    value = max_nan(value, __shfl_xor_sync(kAllLanes, value, bit));
  }
  return value;
}
/// Their sum, which all 8 lanes compute in the same order of keys.
__device__ inline float sum_of_keys(float value) {
#pragma unroll
  for (int bit = 4; bit < 32; bit *= 2) value += __shfl_xor_sync(kAllLanes, value, bit);
  return value;
}

/// Scores that the weights do not take at their word count as the nearest that they do.
__device__ inline float counted_score(float score) {
  return score == kNoKeys ? score : fminf(fmaxf(score, -kLargestScore), kLargestScore);
}

/// exp(score - exponent * ln 2). log2(e) has two parts: one float32 would be off by 10^-8 of the
/// score.
__device__ inline float chunk_weight(float score, float exponent) {
  constexpr float kLog2ERest = 1.925963033500212e-8f;
  return ex2_approx(fmaf(score, kLog2ERest, fmaf(score, kLog2E, -exponent)));
}

/// Weighs row `j` (0 or 1) of this thread and turns its scores into weights. `max` is the row's
/// largest score so far.
__device__ inline void weigh_row(Products& s, int j, float& max, ChunkWeights& weights) {
  float top = largest_of_keys(max_nan(s[j], s[2 + j])) + 0.0f;  // 0, never -0
  if (top == -kNoKeys) top = __int_as_float(0x7FFF'FFFF);       // as on the CPU
  max = max_nan(max, top);
  const bool is_seen = top > kNoKeys;  // false for NaN
  const float counted = counted_score(top);
  if (is_seen && counted != top) {
    s[j] = counted_score(s[j]);
    s[2 + j] = counted_score(s[2 + j]);
  }
  const float exponent = is_seen ? floorf(counted * kLog2E) : 0.0f;
  s[j] = is_seen ? chunk_weight(s[j], exponent) : 0.0f;
  s[2 + j] = is_seen ? chunk_weight(s[2 + j], exponent) : 0.0f;
  weights.exponent[j] = static_cast<std::int32_t>(exponent);
  weights.sum[j] = sum_of_keys(s[j] + s[2 + j]);
}

/// Turns the scores of a chunk into weights. `max` [2]: the largest scores of the thread's rows.
__device__ inline ChunkWeights weigh(Products& s, float (&max)[2]) {
  ChunkWeights weights;
  weigh_row(s, 0, max[0], weights);
  weigh_row(s, 1, max[1], weights);
  weights.b[0] = movmatrix_trans(pack_pair<kPoolType>(s[0], s[1]));
  weights.b[1] = movmatrix_trans(pack_pair<kPoolType>(s[2], s[3]));
  return weights;
}

}  // namespace kvmesh::cuda
