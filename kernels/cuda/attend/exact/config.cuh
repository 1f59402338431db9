// Values derived from the constants of the kernel of exact sums.
//
// Constants (namespace kvmesh), beside rows.cuh's: kDimK, kDimV, kPoolType, kQueryType,
// kQueryVectors (16-byte loads of queries are possible), kRowWarps (warps that share keys: they
// split rows and columns), kColumnWarps, kKeyWarps, kStepKeys, kStages, kChunkKeys, kBlocksPerSm,
// kOverlaps.
#pragma once

#include "core/cuda/warp.cuh"
#include "core/pod/exact_limbs.hpp"
#include "core/pod/exact_row.hpp"
#include "kernels/cuda/attend/common/rows.cuh"
#include "kernels/cuda/attend/exact/exact_tile.hpp"
#include "kernels/cuda/attend/exact/ordered_bits.cuh"

namespace kvmesh::cuda {

constexpr ExactTile kTile{
    kRowWarps / kColumnWarps, kColumnWarps, kKeyWarps, kStepKeys, kStages, kChunkKeys};
constexpr ExactShared kShared{kTile, kDimK, kDimV};
constexpr int kPaddedK = padded_dim(kDimK);
constexpr int kPaddedV = padded_dim(kDimV);
constexpr SharedRows kRowsK{kDimK};
constexpr SharedRows kRowsV{kDimV};
constexpr int kAllColumnTiles = kPaddedV / 16;
/// Tensor-core tiles of 16 output columns that a warp has; the last warp may have fewer.
constexpr int kColumnTiles = (kAllColumnTiles + kColumnWarps - 1) / kColumnWarps;
constexpr int kStepThreads = 32 * kRowWarps;  // threads that share keys
/// Steps until a warp's limbs are full, or those of all key warps together.
constexpr int kMostSteps = static_cast<int>(kMostLimbTerms) / (kStepKeys / 16 * kKeyWarps);

static_assert(kRowWarps == 1 || kKeyWarps == 1, "warps share their keys or split them");
static_assert(kPoolType != Dtype::kFloat32, "tensor cores here take 16-bit elements");
static_assert(kDimK % 8 == 0 && kDimV % 8 == 0, "rows are copied by 16 bytes");
static_assert(kStepThreads >= kStepKeys, "one thread fetches one visit");
static_assert(kColumnTiles * 16 <= kExactWarpColumns, "outputs are in registers");

/// The products of a warp with 8 rows as columns. With g = lane / 4 and t = lane % 4, element i is
/// key (or output column) g + 8 * (i / 2), row 2 * t + i % 2.
using Products = float[4];

__device__ inline void mma(Products& c, const std::uint32_t (&a)[4], std::uint32_t b0,
                           std::uint32_t b1) {
  if constexpr (kPoolType == Dtype::kFloat16) {
    mma_m16n8k16_f16(c, a, b0, b1);
  } else {
    mma_m16n8k16_bf16(c, a, b0, b1);
  }
}

/// A barrier of the threads that share keys: they all see what each wrote or copied.
__device__ inline void step_sync() {
  if constexpr (kRowWarps == 1) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

}  // namespace kvmesh::cuda
