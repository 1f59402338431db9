// The rows of tensors that a combine takes and gives: [tokens, heads, dim].
#pragma once

#include <cstdint>

#include "kvmesh/combine.hpp"

namespace kvmesh {

/// The row of an output in float32.
inline float* output_row(const CombineOutput& output, std::int64_t token, std::int64_t head) {
  return static_cast<float*>(output.o.data) + token * output.o.stride(0) +
         head * output.o.stride(1);
}

/// Writes the LSE of a merged row if the output takes LSEs.
inline void store_lse(const CombineOutput& output, std::int64_t token, std::int64_t head,
                      float lse) {
  if (output.lse.empty()) return;
  const std::int64_t at = token * output.lse.stride(0) + head * output.lse.stride(1);
  static_cast<float*>(output.lse.data)[at] = lse;
}

/// Writes a merged row and its LSE, converting O to the output's dtype. `o` may be the row itself.
void store_row(const CombineOutput& output, std::int64_t token, std::int64_t head, const float* o,
               float lse);

}  // namespace kvmesh
