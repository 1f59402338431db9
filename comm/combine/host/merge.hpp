// The arithmetic on rows: what both combine strategies share, so that they give the same bits.
#pragma once

#include <cstdint>

#include "kvmesh/combine.hpp"

namespace kvmesh {

/// sum[i] += weight * row[i], the product rounded first: the same bits as add_row after scale_row.
void add_scaled_row(float* sum, const float* row, float weight, std::int64_t dim);

/// scaled[i] = weight * row[i].
void scale_row(float* scaled, const float* row, float weight, std::int64_t dim);

/// sum[i] += row[i].
void add_row(float* sum, const float* row, std::int64_t dim);

/// Writes a merged row and its LSE, converting O to the output's dtype.
void store_row(const CombineOutput& output, std::int64_t token, std::int64_t head, const float* o,
               float lse);

}  // namespace kvmesh
