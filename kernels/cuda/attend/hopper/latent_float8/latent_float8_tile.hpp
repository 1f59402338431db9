// The division of a thread block of the latent kernel for float8 pages, and its shared memory. One
// text for the host and for the kernel.
#pragma once

#include "kernels/cuda/attend/common/params.hpp"
#include "kernels/cuda/attend/hopper/instructions/image.hpp"

namespace kvmesh::cuda {

/// A team is a warpgroup that computes: the scores of 64 keys of a tile, the 64 rows of a product.
inline constexpr int kTeamKeys = 64;
inline constexpr int kTeamThreads = 128;
inline constexpr int kTeamWarps = kTeamThreads / 32;
inline constexpr int kStages = 2;     ///< tiles in shared memory or on their way there
inline constexpr int kPieceRing = 2;  ///< pieces that are known
/// Pages of at least 8 tokens: 16 boxes a tile.
inline constexpr int kMostTileVisits = 2 * kTeamKeys / kAtomRows;

struct LatentFloat8Tile {
  int rows = 8;  // packed query rows, the N of the products: a multiple of 8, 64 at the most
  int k_dim = 0;
  int v_dim = 0;
  int teams = 1;            // 1 or 2; each has as many of the outputs' dims
  bool row_scales = false;  // tiles bring a scale for each key

  /// The teams and the producer warp. Registers move between whole warpgroups, so two teams have a
  /// third beside them, of which one warp works: 3 * 168 = 2 * 224 + 56.
  constexpr bool moves_registers() const { return teams == 2; }
  constexpr int threads() const {
    return teams * kTeamThreads + (moves_registers() ? kTeamThreads : 32);
  }
  constexpr int keys() const { return teams * kTeamKeys; }
  constexpr int values_bytes() const { return KvImage{v_dim, 1}.bytes(keys()); }
  /// The elements of keys that are no values, called the rest.
  constexpr int rest_bytes() const { return KvImage{k_dim - v_dim, 1}.bytes(keys()); }
  constexpr int stage_bytes() const { return values_bytes() + rest_bytes(); }
  constexpr int queries_bytes() const { return KvImage{k_dim}.bytes(rows); }
  /// The weights of a team's keys. Those of the last team take the place of the rest of the keys,
  /// which nothing reads after the scores.
  constexpr int weights_bytes() const { return KvImage{kTeamKeys}.bytes(rows); }
  constexpr int kinds() const { return row_scales ? 2 : 1; }

  /// Whether the rest of the keys has room for what takes its place: the last team's weights and,
  /// before these, the maxima of each warp in that of its own 16 keys.
  constexpr bool rest_has_room() const {
    return rest_bytes() >= weights_bytes() &&
           KvImage{k_dim - v_dim, 1}.bytes(16) >= kinds() * rows * 4;
  }

  // The parts of shared memory, in their order. Those that the tensor cores read come first, at
  // multiples of 1 KB.
  constexpr int queries_offset() const { return kStages * stage_bytes(); }
  constexpr int weights_offset() const { return queries_offset() + queries_bytes(); }
  constexpr int references_offset() const {
    return weights_offset() + (teams - 1) * weights_bytes();
  }
  constexpr int scales_offset() const { return references_offset() + 2 * kinds() * rows * 4; }
  constexpr int factors_offset() const {
    return scales_offset() + (row_scales ? kStages * keys() * 4 : 0);
  }
  constexpr int tasks_offset() const { return factors_offset() + rows * 4; }
  constexpr int visits_offset() const {
    return tasks_offset() + kPieceRing * static_cast<int>(sizeof(DeviceTask));
  }
  constexpr int masked_offset() const {
    return visits_offset() + kStages * kMostTileVisits * static_cast<int>(sizeof(PageVisit));
  }
  constexpr int barriers_offset() const { return (masked_offset() + kStages * 4 + 7) / 8 * 8; }
  constexpr int barriers() const { return 4 * kStages + 2 * kPieceRing; }
  constexpr int bytes() const { return barriers_offset() + barriers() * 8; }
};

}  // namespace kvmesh::cuda
