// How long the pieces of a launch are. One text for the host, nvcc and NVRTC.
#pragma once

#include <cstdint>

namespace kvmesh::cuda {

/// Depends on a kernel: a piece costs the more the larger its partials are.
struct PieceRule {
  /// The shortest piece, in tiles. A piece costs three dependent accesses to memory before its
  /// first keys arrive, and a merge. A line too short to give each multiprocessor this many is
  /// split down to kFewestTiles.
  std::int32_t least_tiles = 8;
  /// Up to this many tiles a thread block's share is one piece: a second one would cost more to
  /// start than it evens out.
  std::int32_t one_piece_tiles = 32;
};

}  // namespace kvmesh::cuda
