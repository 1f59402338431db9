// Values derived from the constants of the tensor-core kernel.
//
// Constants (namespace kvmesh), beside rows.cuh's: kDimK, kDimV, kPoolType, kQueryType,
// kQueryVectors (16-byte loads of queries are possible), kFoldScale (no score mod and scale > 0:
// the scale goes into the exponent), kRowTiles, kRowWarps, kKeyWarps, kStepKeys, kStages,
// kBlocksPerSm.
#pragma once

#include "kernels/cuda/attend/common/softmax.cuh"
#include "kernels/cuda/attend/mma/tile.hpp"

namespace kvmesh::cuda {

constexpr AttendTile kTile{kRowTiles, kRowWarps, kKeyWarps, kStepKeys, kStages};
constexpr AttendShared kShared{kTile, kDimK, kDimV};
constexpr int kPaddedK = padded_dim(kDimK);
constexpr int kPaddedV = padded_dim(kDimV);
constexpr SharedRows kRowsK{kDimK};
constexpr SharedRows kRowsV{kDimV};
constexpr int kMergePitch = merge_pitch(kDimV);
constexpr int kChunkKeys = 16;                // every row of a step has a key
constexpr int kKeyPairs = kStepKeys / 16;     // of tensor-core tiles of 8 keys
constexpr int kValueTiles = kPaddedV / 8;     // tensor-core tiles of 8 output columns
constexpr int kStepThreads = 32 * kRowWarps;  // threads that share keys

static_assert(kRowWarps == 1 || kKeyWarps == 1, "warps split the rows or the keys");
static_assert(kPoolType != Dtype::kFloat32, "tensor cores here take 16-bit elements");
static_assert(kDimK % 8 == 0 && kDimV % 8 == 0, "rows are copied by 16 bytes");
static_assert(kStepThreads >= kStepKeys, "one thread fetches one visit");

/// Scores of a warp's rows and the keys of a step. With g = lane / 4 and t = lane % 4, element i of
/// a tile is row g + 8 * (i / 2), column 2 * t + i % 2.
using Scores = float[kRowTiles][2 * kKeyPairs][4];
/// The weights, in pairs of keys, as mma takes them: element i of 16 keys is row g + 8 * (i % 2),
/// keys 8 * (i / 2) + 2 * t and the one after it.
using Weights = std::uint32_t[kRowTiles][kKeyPairs][4];

__device__ inline void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
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

__device__ inline bool any_of_step(bool value) {
  if constexpr (kRowWarps == 1) {
    return __any_sync(kAllLanes, value);
  } else {
    return __syncthreads_or(value);
  }
}

}  // namespace kvmesh::cuda
