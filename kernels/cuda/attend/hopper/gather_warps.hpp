// The warps that gather the rows of a tile. One text for the host and for the kernels.
#pragma once

namespace kvmesh::cuda {

/// The first also claims pieces and brings tasks.
inline constexpr int kGatherWarps = 4;
/// Returns how many rows of a tile each warp gathers, 32 at the most.
constexpr int gather_rows(int tile_keys) { return tile_keys / kGatherWarps; }
/// Arrivals at a barrier of a tile: each lane's copies, and what a warp wrote.
inline constexpr int kGatherArrivals = kGatherWarps * (32 + 1);

}  // namespace kvmesh::cuda
