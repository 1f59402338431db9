// Values derived from the constants of the latent kernel for float8 pages, and its shared memory.
//
// Constants (namespace kvmesh), beside those of attend/common: kDimK, kRows, kTeams, kBlocksPerSm,
// kBoxTokens (tokens of a box at the most), kPoolType, kQueryType, kQueryVectors (16-byte loads of
// queries are possible), kRowScales (pages have a scale for each row), kScaleVectors (those of
// neighbours lie together).
#pragma once

#include "kernels/cuda/attend/hopper/latent_float8/latent_float8_tile.hpp"
#include "kernels/cuda/attend/hopper/piece_stream.cuh"
#include "kernels/cuda/attend/hopper/shared_rings.cuh"

namespace kvmesh::cuda {

constexpr LatentFloat8Tile kTile{
    .rows = kRows, .k_dim = kDimK, .v_dim = kDimV, .teams = kTeams, .row_scales = kRowScales};
static_assert(kTile.rest_has_room());
constexpr int kTileKeys = kTile.keys();
constexpr int kMathWarps = kTeams * kTeamWarps;
constexpr int kMathThreads = kTeams * kTeamThreads;
constexpr KvImage kImageQ{kDimK};
constexpr KvImage kImageV{kDimV, 1};
constexpr KvImage kImageRest{kDimK - kDimV, 1};
constexpr KvImage kImageWeights{kTeamKeys};
/// Boxes of values, and of the rest of keys, that make a tile.
constexpr int kBoxRows = kPageSize < kBoxTokens ? kPageSize : kBoxTokens;
constexpr int kTileVisits = kTileKeys / kBoxRows;
using LatentStream = PieceStream<kTileKeys, kBoxRows>;

/// The barrier of all math warps.
struct Teams {
  __device__ static void sync() {
    asm volatile("barrier.cta.sync 1, %0;" ::"n"(kMathThreads) : "memory");
  }
  /// Shared by all of them.
  __device__ static bool any(bool value) {
    int found;
    asm volatile(
        "{\n.reg .pred in, out;\nsetp.ne.b32 in, %1, 0;\n"
        "barrier.cta.red.or.pred out, 1, %2, in;\nselp.b32 %0, 1, 0, out;\n}"
        : "=r"(found)
        : "r"(static_cast<int>(value)), "n"(kMathThreads)
        : "memory");
    return found != 0;
  }
};

/// The shared memory of a block: latent_float8_tile.hpp has the order.
class LatentFloat8Shared : public SharedRings<kTile, kStages, kMostTileVisits> {
 public:
  __device__ explicit LatentFloat8Shared(char* begin)
      : SharedRings(begin, uniform(shared_address(begin))) {}

  __device__ std::uint32_t values(int stage) const {
    return address() + stage * kTile.stage_bytes();
  }
  __device__ std::uint32_t rest(int stage) const { return values(stage) + kTile.values_bytes(); }
  __device__ std::uint32_t queries() const { return address() + kTile.queries_offset(); }
  /// The weights of the keys of a team.
  __device__ std::uint32_t weights(int stage, int team) const {
    return team == kTeams - 1 ? rest(stage) : address() + kTile.weights_offset();
  }
  /// [kinds][kRows]: the maxima of a warp's columns, in the place of the rest of its own keys.
  __device__ float* columns(int stage, int warp) const {
    return at<float>(stage * kTile.stage_bytes() + kTile.values_bytes() +
                     kImageRest.bytes(16 * warp));
  }
  /// [kinds][kRows]: the reference of a column's exponents, of scores and of weights.
  __device__ float* references() const { return at<float>(kTile.references_offset()); }
  /// [kinds][kRows]: the factor of what was relative to the reference before.
  __device__ float* keeps() const { return references() + kTile.kinds() * kRows; }
  /// [kTileKeys]: of keys, which are also those of their values.
  __device__ float* scales(int stage) const {
    return at<float>(kTile.scales_offset()) + stage * kTileKeys;
  }
  /// [kRows]: the divisor of each query row.
  __device__ float* query_factors() const { return at<float>(kTile.factors_offset()); }
  /// [kRows]: the sums of a warp's columns, in the place of queries that are no longer needed.
  __device__ float* sums(int warp) const {
    return at<float>(kTile.queries_offset()) + warp * kRows;
  }
  /// A warp's row in float32, in the same place.
  __device__ float* plain_query(int warp) const {
    static_assert(kMathWarps * 4 <= 2 * kRows, "a row per warp must fit the queries' place");
    return at<float>(kTile.queries_offset()) + warp * kDimK;
  }

  __device__ std::uint32_t full(int stage) const { return keys_full(stage); }
  __device__ std::uint32_t empty(int stage) const { return keys_empty(stage); }
  __device__ std::uint32_t piece_full(int slot) const { return piece_barrier(slot); }
  __device__ std::uint32_t piece_empty(int slot) const { return piece_barrier(kPieceRing + slot); }

  __device__ void init_barriers() const {
    init_stages(kMathWarps, kRowScales ? 33 : 1);  // the copy engine's, and each lane's scales
    for (int slot = 0; slot < kPieceRing; ++slot) {
      mbarrier_init(piece_full(slot), 1);
      mbarrier_init(piece_empty(slot), kMathWarps);
    }
    fence_mbarrier_init();
  }
};

}  // namespace kvmesh::cuda
