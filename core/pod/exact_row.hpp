// The memory of a row of exact sums, for the host, nvcc and NVRTC: it needs <cstdint> alone.
//
//   bytes   32        8 * dim       8 * dim
//           head      high sums     low sums          dim: that of the output, in whole vectors
#pragma once

#include <cstdint>

#include "core/pod/exact_bins.hpp"

namespace kvmesh {

/// The head of a row, before its outputs.
struct ExactRowHead {
  /// The largest score of a visible key. -inf: there is none. NaN: a score was NaN or +inf.
  float max;
  std::int32_t o_bin;    ///< the top bin of all outputs; kNotFinite: a value was no finite number
  std::int32_t sum_bin;  ///< the top bin of the sum of weights
  std::int32_t unused;
  ExactSum sum;  ///< of exp(score)
};
static_assert(sizeof(ExactRowHead) == 32);

/// The elements of a row whose output has `v_dim`: whole vectors of 16.
constexpr std::int64_t exact_row_dim(int v_dim) { return (v_dim + 15) / 16 * 16; }

constexpr std::int64_t exact_row_bytes(int v_dim) {
  return static_cast<std::int64_t>(sizeof(ExactRowHead)) + 16 * exact_row_dim(v_dim);
}

/// The scores that the sums take at their word. One beyond counts as the nearest: its neighbours in
/// float32 are half a unit or more away, which is a factor of 1.6 between their weights.
inline constexpr float kLargestScore = 4194304.0f;  // 2^22

}  // namespace kvmesh
