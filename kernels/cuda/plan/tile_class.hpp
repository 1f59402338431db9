// The classes of tiles, as the device has them. One text for the host, nvcc and NVRTC.
#pragma once

namespace kvmesh::cuda {

/// The values of kvmesh::TileClass, and one more.
constexpr int kEmptyTile = 0;
constexpr int kPartialTile = 1;
constexpr int kFullTile = 2;
constexpr int kMixedTile = 3;  // each head of the group has a class of its own

}  // namespace kvmesh::cuda
