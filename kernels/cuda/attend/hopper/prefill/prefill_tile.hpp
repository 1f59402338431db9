// The division of a thread block of the prefill kernel, and its shared memory. One text for the
// host, which chooses the numbers, and for the kernel, which is compiled for them.
#pragma once

#include "kernels/cuda/attend/common/params.hpp"
#include "kernels/cuda/attend/hopper/image.hpp"

namespace kvmesh::cuda {

/// Query rows of a consumer: the 64 rows of one product.
inline constexpr int kConsumerRows = 64;
inline constexpr int kConsumerThreads = 128;
inline constexpr int kConsumerWarps = kConsumerThreads / 32;
inline constexpr int kPrefillStages = 2;

struct PrefillTile {
  int consumers = 2;
  int k_dim = 0;
  int v_dim = 0;
  int pieces = 2;  // whose queries are in shared memory or on their way there

  /// Keys of a tile: fewer where outputs take more than 64 registers of a thread, or shared memory
  /// holds no two larger tiles.
  constexpr int keys() const { return k_dim > 192 || v_dim > 128 ? 64 : 128; }
  /// Boxes of a tile at the most.
  constexpr int most_visits() const { return keys() / kAtomRows; }
  constexpr int rows() const { return kConsumerRows * consumers; }
  /// The consumers, and a warpgroup of which one warp brings keys and values, the others queries.
  constexpr int threads() const { return kConsumerThreads * (consumers + 1); }
  constexpr int k_bytes() const { return KvImage{k_dim}.bytes(keys()); }
  constexpr int v_bytes() const { return KvImage{v_dim}.bytes(keys()); }
  constexpr int q_bytes() const { return KvImage{k_dim}.bytes(rows()); }

  // In the order in which they lie there. What the tensor cores read comes first, at multiples of
  // 1 KB.
  constexpr int values_offset() const { return kPrefillStages * k_bytes(); }
  constexpr int queries_offset() const { return values_offset() + kPrefillStages * v_bytes(); }
  constexpr int plain_offset() const { return queries_offset() + pieces * q_bytes(); }
  constexpr int visits_offset() const {
    return plain_offset() + consumers * kConsumerWarps * k_dim * 4;
  }
  constexpr int tasks_offset() const {
    return visits_offset() + kPrefillStages * most_visits() * 8;
  }
  constexpr int masked_offset() const {
    return tasks_offset() + pieces * static_cast<int>(sizeof(DeviceTask));
  }
  constexpr int barriers_offset() const {
    return (masked_offset() + kPrefillStages * 4 + 7) / 8 * 8;
  }
  constexpr int barriers() const { return 4 * kPrefillStages + 3 * pieces; }
  constexpr int bytes() const { return barriers_offset() + barriers() * 8; }
};

}  // namespace kvmesh::cuda
