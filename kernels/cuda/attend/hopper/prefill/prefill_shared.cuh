// Values derived from the constants of the prefill kernel, and its shared memory.
//
// Constants (namespace kvmesh), beside those of attend/common: kDimK, kConsumers, kPieceRing,
// kBoxTokens (tokens of a box at the most), kPoolType, kQueryType, kQueryVectors (16-byte loads of
// queries are possible), kGathers (warps gather keys one by one: row_gather.cuh). For float8 pages:
// kRowScales (they have a scale for each row), kScaleVectors (the scales of neighbours lie
// together), kRegisterSteps (the number of score products, of 16 dims each, whose queries are in
// registers).
#pragma once

#include "kernels/cuda/attend/hopper/gather_warps.hpp"
#include "kernels/cuda/attend/hopper/instructions/wgmma.cuh"
#include "kernels/cuda/attend/hopper/piece_stream.cuh"
#include "kernels/cuda/attend/hopper/prefill/prefill_tile.hpp"
#include "kernels/cuda/attend/hopper/shared_rings.cuh"

namespace kvmesh::cuda {

constexpr PrefillTile kTile{.consumers = kConsumers,
                            .k_dim = kDimK,
                            .v_dim = kDimV,
                            .pieces = kPieceRing,
                            .float8 = kIsFloat8,
                            .row_scales = kRowScales,
                            .gathers = kGathers};
constexpr int kPrefillKeys = kTile.keys();
/// Tiles whose visits and scales are in shared memory.
constexpr int kKeptTiles = kTile.kept_tiles();
constexpr KvImage kImageK{kDimK};
constexpr KvImage kImageV{kDimV};
/// Keys and values as they arrive.
constexpr KvImage kPoolImageK{kDimK, kElementBytes};
constexpr KvImage kPoolImageV{kDimV, kElementBytes};
/// Queries are read in shared memory up to the last scores of a piece.
constexpr bool kQueriesStay = kRegisterSteps < kDimK / 16;
/// Boxes of keys, and of values, that make a tile.
constexpr int kBoxRows = kGathers ? 1 : kPageSize < kBoxTokens ? kPageSize : kBoxTokens;
constexpr int kTileVisits = kPrefillKeys / kBoxRows;
using PrefillStream = PieceStream<kPrefillKeys, kBoxRows, kGathers ? kGatherWarps : 1>;
constexpr int kMathThreads = kConsumerThreads * kConsumers;
constexpr int kMathWarps = kMathThreads / 32;
constexpr int kQueryThreads = 32 * kQueryWarps;
static_assert(kGatherWarps == 1 + kQueryWarps);

/// The shared memory of a block: prefill_tile.hpp has the order.
class PrefillShared : public SharedRings<kTile, kPrefillStages, kTile.most_visits()> {
 public:
  // Through a shuffle: otherwise the compiler computes the address anew at every use.
  __device__ explicit PrefillShared(char* begin)
      : SharedRings(begin, uniform(shared_address(begin))) {}

  __device__ std::uint32_t keys(int stage) const { return address() + stage * kTile.k_bytes(); }
  __device__ std::uint32_t values(int stage) const {
    return address() + kTile.values_offset() + stage * kTile.v_bytes();
  }
  __device__ std::uint32_t queries(int slot) const {
    const int copy = kTile.query_slots() == 1 ? 0 : slot;
    return address() + kTile.queries_offset() + copy * kTile.q_bytes();
  }
  /// The rows of one consumer.
  __device__ std::uint32_t queries(int slot, int consumer) const {
    return queries(slot) + kImageK.bytes(consumer * kConsumerRows);
  }
  /// A warp's row in float32.
  __device__ float* plain_query(int warp) const {
    return at<float>(kTile.plain_offset()) + warp * kDimK;
  }

  // ---- Of float8 pages ----

  /// Where a tile of keys or values arrives.
  __device__ std::uint32_t float8_tile(int slot) const {
    return address() + kTile.float8_offset() + slot * kTile.float8_bytes();
  }
  /// [kPrefillKeys], of the tile with this number.
  __device__ float* key_scales(int tile) const {
    return at<float>(kTile.scales_offset()) + tile % kKeptTiles * 2 * kPrefillKeys;
  }
  /// The same for values: their scales, then what weights are multiplied by.
  __device__ float* value_factors(int tile) const { return key_scales(tile) + kPrefillKeys; }
  /// The exponent that they are relative to, as in a float's bits, or that + kWideTile.
  __device__ int& value_exponent(int tile) const {
    return at<int>(kTile.exponents_offset())[tile % kKeptTiles];
  }
  /// [rows]: the divisors of float32 queries.
  __device__ float* query_factors() const { return at<float>(kTile.factors_offset()); }

  __device__ std::uint32_t task_full(int slot) const { return piece_barrier(slot); }
  __device__ std::uint32_t queries_full(int slot) const { return piece_barrier(kPieceRing + slot); }
  __device__ std::uint32_t piece_empty(int slot) const {
    return piece_barrier(2 * kPieceRing + slot);
  }
  __device__ std::uint32_t float8_full(int slot) const {
    return piece_barrier(3 * kPieceRing + slot);
  }
  __device__ std::uint32_t float8_empty(int slot) const {
    return piece_barrier(3 * kPieceRing + kFloat8Tiles + slot);
  }
  /// The place of float8 pages' queries.
  __device__ std::uint32_t queries_empty() const {
    return piece_barrier(3 * kPieceRing + 2 * kFloat8Tiles);
  }

  __device__ void init_barriers() const {
    constexpr int kFillers = kGathers ? kGatherArrivals : kIsFloat8 ? kQueryWarps : 1;
    init_stages(kMathWarps, kFillers, kFillers);
    for (int slot = 0; slot < kPieceRing; ++slot) {
      mbarrier_init(task_full(slot), 1);
      mbarrier_init(queries_full(slot), 2 * kQueryThreads);  // copies, and what was stored
      mbarrier_init(piece_empty(slot), kMathWarps + (kGathers ? kGatherWarps - 1 : 0));
    }
    if constexpr (kIsFloat8) {
      for (int slot = 0; slot < kFloat8Tiles; ++slot) {
        mbarrier_init(float8_full(slot), kRowScales ? 33 : 1);  // the copy engine, lanes' scales
        mbarrier_init(float8_empty(slot), kQueryWarps);
      }
      mbarrier_init(queries_empty(), kMathWarps);
    }
    fence_mbarrier_init();
  }
};

}  // namespace kvmesh::cuda
