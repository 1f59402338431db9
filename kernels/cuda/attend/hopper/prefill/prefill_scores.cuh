// The scores of the prefill kernel between their products and the softmax: score mods and masks.
#pragma once

#include "kernels/cuda/attend/hopper/prefill/prefill_shared.cuh"
#include "kernels/cuda/attend/hopper/row_exponents.cuh"

namespace kvmesh::cuda {

/// A thread's scores of one tile. It has columns 8 * j + 2 * t + c of its two `rows`, with t = lane
/// % 4; those of row h are at 4 * j + 2 * h + c. `tile` is that of the task, `count` that of all
/// that the thread block computed. Over float8 pages a row's products are to be multiplied by its
/// `factor`, which is left to the exponent if the scale is.
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

  /// `top` is the largest of this thread's columns, unless the scale is left to the exponent.
  /// `Rarely`: by less code, which takes a little longer.
  template <bool Rarely = false>
  __device__ __forceinline__ void modify(Scores& s, float (&top)[2]) const {
    if constexpr (kIsFloat8 && (kRowScales || !kFoldScale)) scale_products(s);
    const bool hides = task_.keys - first_key_ < kPrefillKeys || shared_.masked(kept_) != 0;
    if constexpr (!kFoldScale) apply_mod(s, top);
    if (!hides) return;
    if constexpr (Rarely) {
      hide_rarely(s);
    } else {
      hide(s);
    }
    if constexpr (!kFoldScale) find_top(s, top);
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

  static constexpr bool kCapsFirst = !kFoldScale && kCapFactor != 0.0f;
  static constexpr int kCapped = 8;  // scores at a time

  /// Scales and modifies the scores, where the scale is not left to the exponent. Masks are applied
  /// later: most tiles need none, and registers do not suffice for both at once.
  __device__ __forceinline__ void apply_mod(Scores& s, float (&top)[2]) const {
    if constexpr (kCapsFirst) cap(s);
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) modify_columns(s, j, top);
  }

  /// Scales and caps the scores. Scores far below the cap, as most are, need no special functions.
  __device__ __forceinline__ void cap(Scores& s) const {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < kPrefillKeys / 2; ++i) largest = fmaxf(largest, fabsf(s[i]));
    const float most = mod_ops::SmallCap::kMost * kCapDivisor;
    const int are_small = __all_sync(kAllLanes, mod_ops::SmallCap::takes(p_.scale, kCapDivisor) &&
                                                    largest * fabsf(p_.scale) <= most);
    const mod_ops::SmallCap small(p_.scale, kCapDivisor, kCapFactor);
    // A branch for some scores at a time: of all scores at once the compiler would compute what
    // comes first for many, and then has no registers left for more than one at a time.
#pragma unroll
    for (int first = 0; first < kPrefillKeys / 2; first += kCapped) {
      if (opaque(are_small)) {
        small.apply<kCapped>(s + first);
        continue;
      }
#pragma unroll
      for (int i = first; i < first + kCapped; ++i) {
        s[i] = mod_ops::NearMath::scaled_soft_cap(s[i], p_.scale, kCapDivisor, kCapFactor);
      }
    }
  }

  __device__ __forceinline__ void modify_columns(Scores& s, int j, float (&top)[2]) const {
    const int first = kGathers ? 0 : first_of_box(j).position + first_column();
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const mod_ops::KeyPlace key = kGathers ? mod_ops::KeyPlace{gathered_key(j, c).position, 0}
                                             : mod_ops::KeyPlace{first, 8 * j % kBoxRows + c};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float& score = s[4 * j + 2 * h + c];
        score = modified_near(rows_[h], key, score);
        top[h] = j + c == 0 ? score : fmaxf(top[h], score);
      }
    }
  }
  __device__ __forceinline__ float modified_near(const Row& row, mod_ops::KeyPlace key,
                                                 float score) const {
    if constexpr (kCapsFirst) {
      return modified_by<mod_ops::NearMath>(p_, task_, row, key, mod_ops::CappedScore{score});
    } else if constexpr (kHasScoreMod) {
      return modified_by<mod_ops::NearMath>(p_, task_, row, key, score * p_.scale);
    } else {
      return score * p_.scale;
    }
  }

  /// Hides what is not visible, page by page.
  __device__ __forceinline__ void hide(Scores& s) const {
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) hide_columns(s, j, j);
  }

  /// The same by less code: it hides 16 columns, and moves those after them to their place.
  __device__ __forceinline__ void hide_rarely(Scores& s) const {
    constexpr int kTilesAtOnce = 2, kMoved = 4 * kTilesAtOnce;
#pragma unroll 1
    for (int first = 0; first < kKeyTiles; first += kTilesAtOnce) {
#pragma unroll
      for (int j = 0; j < kTilesAtOnce; ++j) hide_columns(s, j, first + j);
      float done[kMoved];
#pragma unroll
      for (int i = 0; i < kMoved; ++i) done[i] = s[i];
#pragma unroll
      for (int i = 0; i + kMoved < 4 * kKeyTiles; ++i) s[i] = s[i + kMoved];
#pragma unroll
      for (int i = 0; i < kMoved; ++i) s[4 * kKeyTiles - kMoved + i] = done[i];
    }
  }

  /// Hides columns of scores 4 * at .., which are those of keys 8 * j ..
  __device__ __forceinline__ void hide_columns(Scores& s, int at, int j) const {
    // Numbers that depend on the box or the tile alone come first: the rest is compiled 64 times.
    const int live = task_.keys - first_key_, live_of_thread = live - first_column();
    const Key first = kGathers ? gathered_key(j, 0) : first_of_box(j);
    if (!kGathers && !first.visit.masked && 8 * j + 8 <= live) return;
    const int position = first.position + first_column();
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const Key key = kGathers ? gathered_key(j, c)
                               : Key{first_key_ + 8 * j + first_column() + c,
                                     position + 8 * j % kBoxRows + c, first.visit};
      const bool is_live = 8 * j + c < live_of_thread;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float& score = s[4 * at + 2 * h + c];
        if (!(is_live && sees(p_, task_, rows_[h], key))) score = kNoKeys;
      }
    }
  }

  /// The first key of the box that has columns 8 * j ..
  __device__ __forceinline__ Key first_of_box(int j) const {
    const int box = 8 * j / kBoxRows;
    return key_of(shared_.visits(kept_)[box], first_key_ + box * kBoxRows);
  }
  /// The key of a column of this thread, where each has a visit.
  __device__ __forceinline__ Key gathered_key(int j, int c) const {
    const int column = 8 * j + first_column() + c;
    return key_of(shared_.visits(kept_)[column], first_key_ + column);
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
