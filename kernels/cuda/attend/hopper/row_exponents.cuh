// The exponents of a tile's scores, for kernels whose accumulators have query rows as rows.
#pragma once

#include "kernels/cuda/attend/common/softmax.cuh"

namespace kvmesh::cuda {

/// How far a score may exceed the reference, as a power of 2: weights up to 2^8, and sums of them,
/// lose nothing, being floating-point numbers.
constexpr float kSlack = 8.0f;
constexpr float kMostWeight = 256.0f;

/// The factor of row h in the exponents, one for all rows or each row's own.
__device__ inline float scale_of_row(float scale, int /*h*/) { return scale; }
__device__ inline float scale_of_row(const float (&scales)[2], int h) { return scales[h]; }

/// Sets `top` to the largest score of each row, of this thread's columns.
template <int N>
__device__ __forceinline__ void find_top(const float (&s)[N], float (&top)[2]) {
  top[0] = s[0];
  top[1] = s[2];
#pragma unroll
  for (int i = 1; i < N; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]);
}

/// The references of the exponents of a thread's two rows, and the sums of the exponentials. The
/// thread's accumulators have columns 8 * j + 2 * t + c of row h at 4 * j + 2 * h + c.
struct RowExponents {
  float reference[2] = {kNoKeys, kNoKeys};  // near the maximum, in the scores' units
  float sum[2] = {0.0f, 0.0f};  // of weights, over this thread's columns, until the piece ends

  __device__ bool has_no_reference() const {
    return reference[0] == kNoKeys || reference[1] == kNoKeys;
  }

  /// Turns scores into weights exp(score - reference), with a reference that no score exceeds by
  /// more than `slack` (log 2). `top` is the largest of this thread's columns, if the scale is not
  /// left to the exponent. Returns whether the reference was raised; then `keep` is the factor for
  /// the former sums of the rows.
  template <int N, class Scale>
  __device__ bool softmax(float (&s)[N], float (&top)[2], const Scale& scale, float slack,
                          float (&keep)[2]) {
    if constexpr (kFoldScale) find_top(s, top);
    const bool raised = exceed(top, scale, slack);
    if (raised) {
#pragma unroll
      for (int h = 0; h < 2; ++h) keep[h] = raise(h, of_row(h, top[h]), scale_of_row(scale, h));
      if constexpr (!kFoldScale) find_far();
    }
    float sums[2];
    exponentiate(s, scale, sums);
    return raised;
  }

  /// Returns whether a score of the warp's rows, of which `top` is the largest of this thread's
  /// columns, exceeds the reference by more than `slack` (log 2).
  template <class Scale>
  __device__ bool exceed(const float (&top)[2], const Scale& scale, float slack) const {
    const float above[2] = {slack / scale_of_row(scale, 0), slack / scale_of_row(scale, 1)};
    return __any_sync(kAllLanes,
                      top[0] > reference[0] + above[0] || top[1] > reference[1] + above[1]);
  }

  /// Returns a reference for row h, from the `top` of each lane that has some of its columns.
  __device__ float of_row(int h, float top) const {
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
    return fmaxf(top, reference[h]);
  }

  /// Exponentiates by the current reference. `sums` are this tile's, of this thread's columns.
  template <int N, class Scale>
  __device__ void exponentiate(float (&s)[N], const Scale& scale, float (&sums)[2]) {
    const bool subtracts = !kFoldScale && is_far_;
    if (subtracts) subtract_references(s);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float row_scale = scale_of_row(scale, h);
      const float shift = subtracts ? 0.0f : shift_of(reference[h]) * row_scale;
      float total[2] = {0.0f, 0.0f};
#pragma unroll
      for (int j = 0; j < N / 4; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = s[4 * j + 2 * h + c];
          score = ex2_approx(score * row_scale - shift);
          total[c] += score;
        }
      }
      sums[h] = total[0] + total[1];
      sum[h] += sums[h];
    }
  }

  /// Returns the factor for the row's former sums.
  __device__ float raise(int h, float to, float scale) {
    // Exactly 1 while the reference stands: thousands of steps of a rounded 1 would add up.
    const float keep = reference[h] == to ? 1.0f : ex2_approx(step(h, to, scale));
    reference[h] = to;
    sum[h] *= keep;
    return keep;
  }

  /// Puts the second row in the place of the first.
  __device__ void take_second_row() {
    reference[0] = reference[1];
    sum[0] = sum[1];
  }

  /// Ends the piece: sums over all columns.
  __device__ void add_up() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sum[h] += __shfl_xor_sync(kAllLanes, sum[h], 1);
      sum[h] += __shfl_xor_sync(kAllLanes, sum[h], 2);
    }
  }

  /// Did a product spoil row h of the outputs `o`, whose weights are all in order? Or did all
  /// weights round to 0, which takes scores so large that a unit in their last place exceeds 100?
  template <int N>
  __device__ bool is_spoilt(int h, const float (&o)[N]) const {
    float probe = 0.0f;
#pragma unroll
    for (int n = 0; n < N / 4; ++n) {
      probe += o[4 * n + 2 * h] * 0.0f + o[4 * n + 2 * h + 1] * 0.0f;
    }
    const bool is_lost = sum[h] == 0.0f && reference[h] != kNoKeys;
    return is_lost || (probe != probe && sum[h] == sum[h]);
  }

 private:
  /// A mod may add numbers like -1e9, and score * scale - shift loses their differences. That is
  /// only computed by references up to this one, where it is as exact as scores.
  static constexpr float kMostNear = 1024.0f;
  __device__ static bool is_far(float reference) {
    return fabsf(reference) > kMostNear && reference != kNoKeys;
  }

  __device__ void find_far() {
    is_far_ = __any_sync(kAllLanes, is_far(reference[0]) || is_far(reference[1]));
  }

  template <int N>
  __device__ void subtract_references(float (&s)[N]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) s[i] -= shift_of(reference[i / 2 % 2]);
  }

  /// Nothing visible yet: -inf - -inf must not be computed. A NaN is no maximum, but stays one.
  __device__ static float shift_of(float reference) {
    return reference == kNoKeys ? 0.0f : reference;
  }

  /// The exponent of the factor by which weights change when the reference does: the difference of
  /// what `exponentiate` subtracts.
  __device__ float step(int h, float to, float scale) const {
    if constexpr (kFoldScale) return reference[h] * scale - shift_of(to) * scale;
    if (is_far_ || is_far(to)) return (reference[h] - shift_of(to)) * scale;
    return __fmul_rn(reference[h], scale) - __fmul_rn(shift_of(to), scale);
  }

  // The warp has a row with a far reference. Only where the scale is not left to the exponent. True
  // until `softmax` has raised a reference: other callers of `raise` always subtract.
  bool is_far_ = true;
};

}  // namespace kvmesh::cuda
