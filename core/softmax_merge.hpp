// The arithmetic of merging partials: shared by the merge among splits and the combine among ranks.
//
// With LSE_i the log-sum-exp of subset i and O_i its normalised output, the union has
//   LSE = log sum_i exp(LSE_i),   O = sum_i exp(LSE_i - LSE) * O_i.
// The maximum is taken out first, so nothing overflows; a union with no visible key has O = 0 and
// LSE = -inf, and never computes inf - inf. Source: Dao et al., FlashAttention, 2022, section 3.1.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

namespace kvmesh {

inline constexpr float kNoKeys = -std::numeric_limits<float>::infinity();

/// The log-sum-exp of the union, summed in the order of `lses`. NaN if one of them is, which is no
/// empty subset, though the maximum passes over it.
inline float merged_lse(std::span<const float> lses) {
  float max = kNoKeys;
  for (float lse : lses) max = std::max(max, lse);
  const float shift = max == kNoKeys ? 0.0f : max;
  float sum = 0.0f;
  for (float lse : lses) sum += std::exp(lse - shift);
  return sum == 0.0f ? kNoKeys : shift + std::log(sum);
}

/// What subset with log-sum-exp `lse` contributes to a union with `merged`. 0 for an empty one.
inline float merge_weight(float lse, float merged) {
  return lse == kNoKeys ? 0.0f : std::exp(lse - merged);
}

}  // namespace kvmesh
