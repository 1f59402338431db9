// The scores of the prefill kernel between their products and the softmax: score mods and masks.
#pragma once

#include "kernels/cuda/attend/common/rows.cuh"
#include "kernels/cuda/attend/hopper/prefill/prefill_shared.cuh"

namespace kvmesh::cuda {

/// A thread's scores of one tile. Of its two `rows` it has columns 8 * j + 2 * t + c, with t = lane
/// % 4, at 4 * j + 2 * h + c of row h. `tile` is that of the task, `count` that of all that the
/// thread block computed. Over float8 pages a row's products are to be multiplied by its `factor`,
/// which is left to the exponent if the scale is.
class PrefillScores {
 public:
  using Scores = float[kPrefillKeys / 2];
  using RowFactors = float[2];

  __device__ PrefillScores(const AttendParams& params, const PrefillShared& shared,
                           const DeviceTask& task, const Row (&rows)[2],
                           const RowFactors& row_factors, int tile, int count)
      : p_(params),
        shared_(shared),
        task_(task),
        rows_(rows),
        row_factors_(row_factors),
        first_key_(tile * kPrefillKeys),
        count_(count),
        kept_(count % kKeptTiles) {}

  __device__ __forceinline__ void modify(Scores& s) const {
    if constexpr (kIsFloat8 && (kRowScales || !kFoldScale)) scale_products(s);
    if constexpr (!kFoldScale) apply_mod(s);
    hide(s);
  }

 private:
  static constexpr int kKeyTiles = kPrefillKeys / 8;

  __device__ static int first_column() { return threadIdx.x % 4 * 2; }

  /// Multiplies by the keys' scales, and by the rows' factors unless the exponent has them.
  __device__ __forceinline__ void scale_products(Scores& s) const {
    const float* const scales = shared_.key_scales(count_) + first_column();
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
      float2 scale{1.0f, 1.0f};
      if constexpr (kRowScales) scale = *reinterpret_cast<const float2*>(scales + 8 * j);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float factor = kFoldScale ? 1.0f : row_factors_[h];
        s[4 * j + 2 * h] *= factor * scale.x;
        s[4 * j + 2 * h + 1] *= factor * scale.y;
      }
    }
  }

  /// Scales and modifies the scores, where the scale is not left to the exponent. Masks are applied
  /// later: most tiles need none, and registers do not suffice for both at once.
  __device__ __forceinline__ void apply_mod(Scores& s) const {
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
      Key key = key_of_columns(j);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float& score = s[4 * j + 2 * h + c];
          score = modified<mod_ops::NearMath>(p_, task_, rows_[h], key, score);
        }
        ++key.number;
        ++key.position;
      }
    }
  }

  /// The key of this thread's first column of the j-th 8, computed from the first of their box:
  /// then no column takes more than an addition.
  __device__ __forceinline__ Key key_of_columns(int j) const {
    const int box = 8 * j / kBoxRows;
    const int in_box = 8 * j % kBoxRows + first_column();
    Key key = key_of(shared_.visits(kept_)[box], first_key_ + box * kBoxRows);
    key.number += in_box;
    key.position += in_box;
    return key;
  }

  /// Hides what is not visible, page by page.
  __device__ __forceinline__ void hide(Scores& s) const {
    const bool check = task_.keys - first_key_ < kPrefillKeys || shared_.masked(kept_) != 0;
    if (!check) return;
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
      const bool is_masked = shared_.visits(kept_)[8 * j / kBoxRows].masked;
      if (!is_masked && first_key_ + 8 * j + 8 <= task_.keys) continue;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int in_tile = 8 * j + first_column() + c;
        const Key key = key_of(shared_.visits(kept_)[in_tile / kBoxRows], first_key_ + in_tile);
        const bool is_live = key.number < task_.keys;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float& score = s[4 * j + 2 * h + c];
          if (!(is_live && sees(p_, task_, rows_[h], key))) score = kNoKeys;
        }
      }
    }
  }

  const AttendParams& p_;
  const PrefillShared& shared_;
  const DeviceTask& task_;
  const Row (&rows_)[2];
  const RowFactors& row_factors_;
  const int first_key_;
  const int count_;
  const int kept_;
};

}  // namespace kvmesh::cuda
