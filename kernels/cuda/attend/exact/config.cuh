// Values derived from the constants of the kernel of exact sums.
//
// Constants (namespace kvmesh), beside warp_products.cuh's: kColumnWarps (the warps that share keys
// split rows and columns), kChunkKeys.
#pragma once

#include "core/pod/exact_limbs.hpp"
#include "core/pod/exact_row.hpp"
#include "kernels/cuda/attend/common/warp_products.cuh"
#include "kernels/cuda/attend/exact/exact_tile.hpp"
#include "kernels/cuda/attend/exact/ordered_bits.cuh"

namespace kvmesh::cuda {

constexpr ExactTile kTile{
    kRowWarps / kColumnWarps, kColumnWarps, kKeyWarps, kStepKeys, kStages, kChunkKeys};
constexpr ExactShared kShared{kTile, kDimK, kDimV};
constexpr int kAllColumnTiles = kPaddedV / 16;
/// Tensor-core tiles of 16 output columns that a warp has; the last warp may have fewer.
constexpr int kColumnTiles = (kAllColumnTiles + kColumnWarps - 1) / kColumnWarps;
/// Steps until a warp's limbs are full, or those of all key warps together.
constexpr int kMostSteps = static_cast<int>(kMostLimbTerms) / (kStepKeys / 16 * kKeyWarps);

static_assert(kColumnTiles * 16 <= kExactWarpColumns, "outputs are in registers");

/// The products of a warp with 8 rows as columns. With g = lane / 4 and t = lane % 4, element i is
/// key (or output column) g + 8 * (i / 2), row 2 * t + i % 2.
using Products = float[4];

}  // namespace kvmesh::cuda
