// The arithmetic on rows, in vectors: what both combine strategies share, so that they give the
// same bits.
#pragma once

#include <cstdint>
#include <span>

namespace kvmesh {

/// Rows that merge_lses takes at once are padded to a multiple of this.
inline constexpr std::int64_t kRowLanes = 16;

/// Merges the LSEs of `rows` rows, as core/pod/row_merge.hpp says: weights[rank][row] is the share
/// of a rank's row in the merged output, 0 for a row without keys; merged[row] is the merged LSE.
/// REQUIRES: `rows` is a multiple of kRowLanes; lses and weights: [ranks][rows], merged: [rows].
void merge_lses(const float* lses, std::int64_t ranks, std::int64_t rows, float* weights,
                float* merged);

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

}  // namespace kvmesh
