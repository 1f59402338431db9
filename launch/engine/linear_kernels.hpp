// One thread's part of a linear layer, vectorised with run-time dispatch.
#pragma once

#include <cstdint>

#include "launch/engine/matrix.hpp"

namespace kvmesh::engine {

/// Rows that one pass over the activations computes.
inline constexpr std::int64_t kRowGroup = 4;

struct RowTask {
  Matrix weights;
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  const float* x = nullptr;  ///< [tokens, cols]
  std::int64_t tokens = 0;
  float* y = nullptr;  ///< [tokens, rows], tokens y_stride apart
  std::int64_t y_stride = 0;
};

void multiply_rows(const RowTask& task);

/// out[i] = silu(gate[i]) * up[i]; silu(g) = g / (1 + exp(-g)). `out` may be `gate` or `up`. An
/// element's bits do not depend on its place.
void silu_times(const float* gate, const float* up, float* out, std::int64_t count);

}  // namespace kvmesh::engine
