// Values derived from the constants of the tensor-core kernel.
//
// Constants (namespace kvmesh), beside warp_products.cuh's: kFoldScale (no score mod and scale > 0:
// the scale goes into the exponent), kRowTiles.
#pragma once

#include "kernels/cuda/attend/common/softmax.cuh"
#include "kernels/cuda/attend/common/warp_products.cuh"
#include "kernels/cuda/attend/mma/tile.hpp"

namespace kvmesh::cuda {

constexpr AttendTile kTile{kRowTiles, kRowWarps, kKeyWarps, kStepKeys, kStages};
constexpr AttendShared kShared{kTile, kDimK, kDimV};
constexpr int kMergePitch = merge_pitch(kDimV);
constexpr int kChunkKeys = 16;             // every row of a step has a key
constexpr int kKeyPairs = kStepKeys / 16;  // of tensor-core tiles of 8 keys
constexpr int kValueTiles = kPaddedV / 8;  // tensor-core tiles of 8 output columns

/// Scores of a warp's rows and the keys of a step. With g = lane / 4 and t = lane % 4, element i of
/// a tile is row g + 8 * (i / 2), column 2 * t + i % 2.
using Scores = float[kRowTiles][2 * kKeyPairs][4];
/// The weights, in pairs of keys, as mma takes them: element i of 16 keys is row g + 8 * (i % 2),
/// keys 8 * (i / 2) + 2 * t and the one after it.
using Weights = std::uint32_t[kRowTiles][kKeyPairs][4];

__device__ inline bool any_of_step(bool value) {
  if constexpr (kRowWarps == 1) {
    return __any_sync(kAllLanes, value);
  } else {
    return __syncthreads_or(value);
  }
}

}  // namespace kvmesh::cuda
