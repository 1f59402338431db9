// The division of a thread block of the latent kernel, and its shared memory. One text for the host
// and for the kernel.
#pragma once

#include "kernels/cuda/attend/common/params.hpp"
#include "kernels/cuda/attend/hopper/instructions/image.hpp"

namespace kvmesh::cuda {

/// Query rows of a thread block: the 64 rows of one product.
inline constexpr int kLatentRows = 64;
inline constexpr int kLatentKeys = 64;   ///< keys of a tile
inline constexpr int kLatentStages = 2;  ///< one for each warpgroup's scores
inline constexpr int kLatentTeams = 2;   ///< warpgroups that compute
inline constexpr int kTeamThreads = 128;
/// The teams, and a warpgroup of which one warp brings keys, the others queries; all four gather
/// keys where the copy engine cannot bring them.
inline constexpr int kLatentThreads = kTeamThreads * (kLatentTeams + 1);

struct LatentTile {
  int k_dim = 0;
  int v_dim = 0;
  bool gathers = false;  // each key is brought by itself, and has a visit

  /// Elements of a row on the left: the values of the first team. The right has those of the
  /// second, and the rest of the key.
  constexpr int left_dim() const { return v_dim / kLatentTeams; }
  constexpr int right_dim() const { return k_dim - left_dim(); }
  constexpr int left_bytes() const { return KvImage{left_dim()}.bytes(kLatentKeys); }
  constexpr int right_bytes() const { return KvImage{right_dim()}.bytes(kLatentKeys); }
  constexpr int stage_bytes() const { return left_bytes() + right_bytes(); }
  /// Visits of a stage, at the most.
  constexpr int visits() const { return gathers ? kLatentKeys : kLatentKeys / kAtomRows; }

  // The parts of shared memory, in their order. Those that the tensor cores read come first, at
  // multiples of 1 KB.
  constexpr int queries_offset() const { return kLatentStages * stage_bytes(); }
  constexpr int rows_offset() const { return queries_offset() + KvImage{k_dim}.bytes(kLatentRows); }
  constexpr int visits_offset() const { return rows_offset() + kLatentTeams * kLatentRows * 4; }
  constexpr int tasks_offset() const {
    return visits_offset() + kLatentStages * visits() * static_cast<int>(sizeof(PageVisit));
  }
  constexpr int masked_offset() const {
    return tasks_offset() + static_cast<int>(sizeof(DeviceTask));
  }
  constexpr int barriers_offset() const {
    return (masked_offset() + kLatentStages * 4 + 7) / 8 * 8;
  }
  constexpr int barriers() const { return 4 * kLatentStages + 3; }
  constexpr int bytes() const { return barriers_offset() + barriers() * 8; }
};

}  // namespace kvmesh::cuda
