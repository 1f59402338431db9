// Values derived from the constants of the prefill kernel, and its shared memory.
//
// Constants (namespace kvmesh), beside those of attend/common: kDimK, kConsumers, kPieceRing,
// kBoxTokens (tokens of a box at the most), kPoolType, kQueryType, kQueryVectors (16-byte loads of
// queries are possible).
#pragma once

#include "kernels/cuda/attend/hopper/piece_stream.cuh"
#include "kernels/cuda/attend/hopper/prefill/prefill_tile.hpp"
#include "kernels/cuda/attend/hopper/shared_rings.cuh"

namespace kvmesh::cuda {

constexpr PrefillTile kTile{kConsumers, kDimK, kDimV, kPieceRing};
constexpr int kPrefillKeys = kTile.keys();
constexpr KvImage kImageK{kDimK};
constexpr KvImage kImageV{kDimV};
/// Boxes of keys, and of values, that make a tile.
constexpr int kBoxRows = kPageSize < kBoxTokens ? kPageSize : kBoxTokens;
constexpr int kTileVisits = kPrefillKeys / kBoxRows;
using PrefillStream = PieceStream<kPrefillKeys, kBoxRows>;
constexpr int kMathThreads = kConsumerThreads * kConsumers;
constexpr int kMathWarps = kMathThreads / 32;
constexpr int kQueryThreads = 96;

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
    return address() + kTile.queries_offset() + slot * kTile.q_bytes();
  }
  /// The rows of one consumer.
  __device__ std::uint32_t queries(int slot, int consumer) const {
    return queries(slot) + kImageK.bytes(consumer * kConsumerRows);
  }
  /// A warp's row in float32.
  __device__ float* plain_query(int warp) const {
    return at<float>(kTile.plain_offset()) + warp * kDimK;
  }

  __device__ std::uint32_t task_full(int slot) const { return piece_barrier(slot); }
  __device__ std::uint32_t queries_full(int slot) const { return piece_barrier(kPieceRing + slot); }
  __device__ std::uint32_t piece_empty(int slot) const {
    return piece_barrier(2 * kPieceRing + slot);
  }

  __device__ void init_barriers() const {
    init_stages(kMathWarps);
    for (int slot = 0; slot < kPieceRing; ++slot) {
      mbarrier_init(task_full(slot), 1);
      mbarrier_init(queries_full(slot), 2 * kQueryThreads);  // copies, and what was stored
      mbarrier_init(piece_empty(slot), kMathWarps);
    }
    fence_mbarrier_init();
  }
};

}  // namespace kvmesh::cuda
