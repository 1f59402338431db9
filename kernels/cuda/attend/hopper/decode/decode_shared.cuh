// Values derived from the constants of the decode kernels, and their shared memory.
//
// Constants (namespace kvmesh), beside those of attend/common: kDimK, kRows, kStages, kPieceRing,
// kPoolType, kQueryType, kQueryVectors (16-byte loads of queries are possible), kLatent (values are
// the first elements of the keys, and have no stages of their own), kRowScales (float8 pages have a
// scale for each row), kScaleVectors (those of neighbours lie together), kGathers (warps gather the
// keys of latent pages one by one: row_gather.cuh).
#pragma once

#include "kernels/cuda/attend/hopper/decode/decode_tile.hpp"
#include "kernels/cuda/attend/hopper/instructions/wgmma.cuh"
#include "kernels/cuda/attend/hopper/piece_stream.cuh"
#include "kernels/cuda/attend/hopper/shared_rings.cuh"

namespace kvmesh::cuda {

constexpr DecodeTile kTile{.rows = kRows,
                           .k_dim = kDimK,
                           .v_dim = kDimV,
                           .stages = kStages,
                           .pieces = kPieceRing,
                           .latent = kLatent,
                           .element_bytes = kElementBytes,
                           .row_scales = kRowScales,
                           .gathers = kGathers};
constexpr KvImage kImageQ{kDimK};
constexpr KvImage kImageK{kDimK, kElementBytes};
static_assert(!kGathers || (kLatent && kImageK.atom_step() == 64));
constexpr KvImage kImageV{kLatent ? kDimK : kDimV, kElementBytes};
constexpr KvImage kImageWeights{kTileKeys};
/// Boxes of keys, and of values, that make a tile.
constexpr int kTileVisits = kGathers                ? kTileKeys
                            : kPageSize < kTileKeys ? kTileKeys / kPageSize
                                                    : 1;
constexpr int kBoxRows = kTileKeys / kTileVisits;
using DecodeStream = PieceStream<kTileKeys, kBoxRows, kGathers ? kGatherWarps : 1>;

/// The shared memory of a block: decode_tile.hpp has the order.
class DecodeShared : public SharedRings<kTile, kStages, kTile.visits()> {
 public:
  __device__ explicit DecodeShared(char* begin)
      : SharedRings(begin, uniform(shared_address(begin))) {}

  __device__ std::uint32_t keys(int stage) const { return address() + stage * kTile.stage_bytes(); }
  __device__ std::uint32_t values(int stage) const {
    return kLatent ? keys(stage) : keys(stage) + kTile.k_bytes();
  }
  /// For latent pages keys arrive, and values are released last.
  __device__ std::uint32_t values_full(int stage) const {
    return kLatent ? keys_full(stage) : SharedRings::values_full(stage);
  }
  __device__ std::uint32_t queries(int slot) const {
    return address() + kTile.q_offset() + slot * kTile.q_bytes();
  }
  __device__ std::uint32_t weights() const { return address() + kTile.weights_offset(); }
  /// [kMathWarps][kRows]: the maxima of each warp's columns.
  __device__ float* columns() const { return at<float>(kTile.columns_offset()); }
  /// [kRows]: the divisor of each query row over float8 pages.
  __device__ float* query_factors(int slot) const {
    return at<float>(kTile.factors_offset()) + slot * kRows;
  }
  /// [2][kTileKeys]: of keys, of values.
  __device__ float* scales(int stage) const {
    return at<float>(kTile.scales_offset()) + stage * 2 * kTileKeys;
  }
  /// Reuses the memory of queries that are no longer needed, for rows in float32.
  __device__ float* plain_query(int slot, int warp) const {
    static_assert(kMathWarps * 4 <= 2 * kRows, "a row per warp must fit the queries' place");
    return at<float>(kTile.q_offset() + slot * kTile.q_bytes()) + warp * kDimK;
  }

  __device__ std::uint32_t piece_full(int slot) const { return piece_barrier(slot); }
  __device__ std::uint32_t piece_empty(int slot) const { return piece_barrier(kPieceRing + slot); }

  /// Where warps gather keys: the others need the task before the queries.
  __device__ std::uint32_t task_full(int slot) const {
    return piece_barrier(2 * kPieceRing + slot);
  }

  __device__ void init_barriers() const {
    // Arrivals for keys: of all gathering warps; else the copy engine's, and each lane's scales.
    init_stages(kMathWarps, kGathers ? kGatherArrivals : kRowScales ? 33 : 1);
    for (int slot = 0; slot < kPieceRing; ++slot) {
      mbarrier_init(piece_full(slot), 33);  // each lane's queries, and the task
      mbarrier_init(piece_empty(slot), kMathWarps + (kGathers ? kGatherWarps - 1 : 0));
      if constexpr (kGathers) mbarrier_init(task_full(slot), 1);
    }
    fence_mbarrier_init();
  }
};

}  // namespace kvmesh::cuda
