// Merges partials on the host: those of splits in attention, and those of ranks in the combine.
// core/pod/row_merge.hpp has the formula.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>

#include "core/pod/row_merge.hpp"

namespace kvmesh {

/// Returns the log-sum-exp of the union, summed in the order of `lses`; NaN if one of them is NaN.
inline float merged_lse(std::span<const float> lses) {
  float max = kNoKeys;
  for (float lse : lses) max = std::max(max, lse);
  const float shift = merge_shift(max);
  float sum = 0.0f;
  for (float lse : lses) sum += std::exp(lse - shift);
  return shift + std::log(sum);
}

/// Returns the weight of a subset in a union whose log-sum-exp is `merged`; 0 for an empty subset.
inline float merge_weight(float lse, float merged) {
  return merge_weight(lse, merged, [](float x) { return std::exp(x); });
}

/// Returns the log-sum-exp of a row that counts a sink; its O is multiplied by merge_weight(lse,
/// that).
inline float lse_with_sink(float lse, float sink) {
  return lse_with_sink(
      lse, sink, [](float x) { return std::exp(x); }, [](float x) { return std::log(x); });
}

}  // namespace kvmesh
