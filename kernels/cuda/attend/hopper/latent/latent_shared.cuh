// Values derived from the constants of the latent kernel, and its shared memory.
//
// Constants (namespace kvmesh), beside those of attend/common: kDimK, kBoxTokens (tokens of a box
// at the most), kPoolType, kQueryType, kQueryVectors (16-byte loads of queries are possible),
// kGathers (warps gather keys one by one: row_gather.cuh).
#pragma once

#include "kernels/cuda/attend/hopper/gather_warps.hpp"
#include "kernels/cuda/attend/hopper/latent/latent_tile.hpp"
#include "kernels/cuda/attend/hopper/piece_stream.cuh"
#include "kernels/cuda/attend/hopper/shared_rings.cuh"

namespace kvmesh::cuda {

constexpr LatentTile kTile{kDimK, kDimV, kGathers};
constexpr KvImage kImageQ{kDimK};
constexpr KvImage kImageLeft{kTile.left_dim()};
constexpr KvImage kImageRight{kTile.right_dim()};
/// Weights are stored over the key's elements past the values, which nothing reads after the
/// scores: this is the unit of 16 bytes, on the right, where they begin.
constexpr int kWeightsUnit = kTile.left_dim() / 8;
static_assert(kTile.right_dim() - kTile.left_dim() >= kLatentKeys, "weights need room in a row");
/// Boxes of each side that make a tile.
constexpr int kBoxRows = kGathers ? 1 : kPageSize < kBoxTokens ? kPageSize : kBoxTokens;
constexpr int kTileVisits = kLatentKeys / kBoxRows;
using LatentStream = PieceStream<kLatentKeys, kBoxRows, kGathers ? kGatherWarps : 1>;
constexpr int kMathThreads = kTeamThreads * kLatentTeams;
constexpr int kMathWarps = kMathThreads / 32;
constexpr int kTeamWarps = kTeamThreads / 32;
constexpr int kQueryThreads = 96;
static_assert(kGatherWarps == 1 + kQueryThreads / 32);

/// The barriers by which teams wait for one another. 1 and 2: the weights of a tile of stage 0 and
/// 1 are written. 3 and 4: a team; 5: both teams.
struct Teams {
  __device__ static void sync(int team) {
    asm volatile("barrier.cta.sync %0, %1;" ::"r"(3 + team), "n"(kTeamThreads) : "memory");
  }
  __device__ static void sync_both() {
    asm volatile("barrier.cta.sync 5, %0;" ::"n"(kMathThreads) : "memory");
  }
  __device__ static void give_weights(int stage) {
    asm volatile("barrier.cta.arrive %0, %1;" ::"r"(1 + stage), "n"(kMathThreads) : "memory");
  }
  __device__ static void wait_weights(int stage) {
    asm volatile("barrier.cta.sync %0, %1;" ::"r"(1 + stage), "n"(kMathThreads) : "memory");
  }
  /// Shared by both teams.
  __device__ static bool any(bool value) {
    int found;
    asm volatile(
        "{\n.reg .pred in, out;\nsetp.ne.b32 in, %1, 0;\n"
        "barrier.cta.red.or.pred out, 5, %2, in;\nselp.b32 %0, 1, 0, out;\n}"
        : "=r"(found)
        : "r"(static_cast<int>(value)), "n"(kMathThreads)
        : "memory");
    return found != 0;
  }
};

/// The shared memory of a block: latent_tile.hpp has the order.
class LatentShared : public SharedRings<kTile, kLatentStages, kTile.visits()> {
 public:
  __device__ explicit LatentShared(char* begin)
      : SharedRings(begin, uniform(shared_address(begin))) {}

  __device__ std::uint32_t left(int stage) const { return address() + stage * kTile.stage_bytes(); }
  __device__ std::uint32_t right(int stage) const { return left(stage) + kTile.left_bytes(); }
  __device__ std::uint32_t weights(int stage) const {
    return right(stage) + kImageRight.unit(0, kWeightsUnit);
  }
  __device__ std::uint32_t queries() const { return address() + kTile.queries_offset(); }
  /// A warp's row in float32, in the place of queries that are no longer needed.
  __device__ float* plain_query(int warp) const {
    return at<float>(kTile.queries_offset()) + warp * kDimK;
  }
  /// [kLatentRows]: a number of each row, from one team to the other.
  __device__ float* rows(int team) const {
    return at<float>(kTile.rows_offset()) + team * kLatentRows;
  }

  __device__ std::uint32_t left_full(int stage) const { return values_full(stage); }
  __device__ std::uint32_t left_empty(int stage) const { return values_empty(stage); }
  __device__ std::uint32_t right_full(int stage) const { return keys_full(stage); }
  __device__ std::uint32_t right_empty(int stage) const { return keys_empty(stage); }
  __device__ std::uint32_t task_full() const { return piece_barrier(0); }
  __device__ std::uint32_t queries_full() const { return piece_barrier(1); }
  __device__ std::uint32_t piece_empty() const { return piece_barrier(2); }

  __device__ void init_barriers() const {
    for (int stage = 0; stage < kLatentStages; ++stage) {
      mbarrier_init(left_full(stage), kGathers ? kGatherArrivals : 1);
      mbarrier_init(right_full(stage), kGathers ? kGatherArrivals : 1);
      mbarrier_init(left_empty(stage), kTeamWarps);   // values of the first team
      mbarrier_init(right_empty(stage), kMathWarps);  // and weights of both
    }
    mbarrier_init(task_full(), 1);
    mbarrier_init(queries_full(), 2 * kQueryThreads);  // copies, and what was stored
    mbarrier_init(piece_empty(), kMathWarps + (kGathers ? kGatherWarps - 1 : 0));
    fence_mbarrier_init();
  }
};

}  // namespace kvmesh::cuda
