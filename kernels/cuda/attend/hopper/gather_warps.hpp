// The warps that gather the rows of a tile of 64 keys. One text for the host and for the kernels.
#pragma once

namespace kvmesh::cuda {

/// The first also claims pieces and brings tasks.
inline constexpr int kGatherWarps = 4;
inline constexpr int kGatherRows = 64 / kGatherWarps;  ///< of a tile, in each warp
/// Arrivals at a barrier of a tile: each lane's copies, and what a warp wrote.
inline constexpr int kGatherArrivals = kGatherWarps * (32 + 1);

}  // namespace kvmesh::cuda
