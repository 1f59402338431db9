// The arithmetic on rows: what both combine strategies share, so that they give the same bits.
#pragma once

#include <cstdint>
#include <span>

#include "kvmesh/combine.hpp"

namespace kvmesh {

/// Sets `weights` to the share of each source in a row's merged output, 0 for a source without
/// keys. Returns the merged LSE: merged_lse(lses).
float merge_weights(std::span<const float> lses, std::span<float> weights);

/// One source of a merged row.
struct WeightedRow {
  const float* o;
  float weight;
};

/// sum[i] = 0 + weight * o[i] of each source in order, products rounded first: the same bits as
/// add_row of scale_row of each.
void sum_rows(float* sum, std::span<const WeightedRow> sources, std::int64_t dim);

/// scaled[i] = weight * row[i].
void scale_row(float* scaled, const float* row, float weight, std::int64_t dim);

/// sum[i] += row[i].
void add_row(float* sum, const float* row, std::int64_t dim);

/// The row of an output in float32.
inline float* output_row(const CombineOutput& output, std::int64_t token, std::int64_t head) {
  return static_cast<float*>(output.o.data) + token * output.o.stride(0) +
         head * output.o.stride(1);
}

/// Writes a merged row and its LSE, converting O to the output's dtype. `o` may be the row itself.
void store_row(const CombineOutput& output, std::int64_t token, std::int64_t head, const float* o,
               float lse);

}  // namespace kvmesh
