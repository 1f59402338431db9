// Merging partials on the host: shared by the merge among splits and the combine among ranks. The
// formula is in core/pod/row_merge.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>

#include "core/pod/row_merge.hpp"

namespace kvmesh {

/// The log-sum-exp of the union, summed in the order of `lses`. NaN if one of them is.
inline float merged_lse(std::span<const float> lses) {
  float max = kNoKeys;
  for (float lse : lses) max = std::max(max, lse);
  const float shift = merge_shift(max);
  float sum = 0.0f;
  for (float lse : lses) sum += std::exp(lse - shift);
  return shift + std::log(sum);
}

/// The weight of a subset in a union whose log-sum-exp is `merged`. 0 for an empty subset.
inline float merge_weight(float lse, float merged) {
  return merge_weight(lse, merged, [](float x) { return std::exp(x); });
}

}  // namespace kvmesh
