// The division of a thread block of the prefill kernel, and its shared memory. One text for the
// host, which chooses the numbers, and for the kernel, which is compiled for them.
#pragma once

#include "kernels/cuda/attend/common/params.hpp"
#include "kernels/cuda/attend/hopper/instructions/image.hpp"

namespace kvmesh::cuda {

/// Query rows of a consumer: the 64 rows of one product.
inline constexpr int kConsumerRows = 64;
inline constexpr int kConsumerThreads = 128;
inline constexpr int kConsumerWarps = kConsumerThreads / 32;
inline constexpr int kPrefillStages = 2;
/// Tiles of keys or of values as float8 that are converted, or on their way.
inline constexpr int kFloat8Tiles = 3;
/// Warps that copy queries and, over float8 pages, convert keys and values.
inline constexpr int kQueryWarps = 3;

/// Set beside the exponent of a tile's scales where some are smaller by more than float16 weights
/// have room for.
inline constexpr int kWideTile = 256;

struct PrefillTile {
  int consumers = 2;
  int k_dim = 0;
  int v_dim = 0;
  int pieces = 2;  // pieces whose tasks, and over 16-bit pages queries, are there or under way
  bool float8 = false;
  bool row_scales = false;  // of float8 pages
  bool gathers = false;     // warps copy keys one by one

  /// Keys of a tile: fewer where outputs take more than 64 registers of a thread, or shared memory
  /// holds no two larger tiles.
  constexpr int keys() const { return k_dim > (float8 ? 128 : 192) || v_dim > 128 ? 64 : 128; }
  /// Boxes of a tile at the most, or its keys.
  constexpr int most_visits() const { return gathers ? keys() : keys() / kAtomRows; }
  constexpr int rows() const { return kConsumerRows * consumers; }
  /// The consumers, and a warpgroup of which one warp brings keys and values; the others bring
  /// queries, and convert tiles of float8 or gather keys beside the first.
  constexpr int threads() const { return kConsumerThreads * (consumers + 1); }
  constexpr int k_bytes() const { return KvImage{k_dim}.bytes(keys()); }
  constexpr int v_bytes() const { return KvImage{v_dim}.bytes(keys()); }
  constexpr int q_bytes() const { return KvImage{k_dim}.bytes(rows()); }
  constexpr int float8_bytes() const {
    return KvImage{k_dim > v_dim ? k_dim : v_dim, 1}.bytes(keys());
  }
  /// Pieces whose queries are in shared memory. Over float8 pages it is one: tiles as float8 leave
  /// no room for more.
  constexpr int query_slots() const { return float8 ? 1 : pieces; }
  /// Tiles whose visits and scales are kept: those of both stages and, of float8 pages, two more.
  /// With three tiles as float8, those of values included, keys under way are at most two tiles
  /// ahead of the last that were converted, for which all consumers had given back a stage.
  constexpr int kept_tiles() const { return kPrefillStages + (float8 ? 2 : 0); }
  /// The scales of a tile's keys, then those of its values.
  constexpr int scales_bytes() const { return row_scales ? 2 * keys() * 4 : 0; }

  // The parts of shared memory, in their order. Those that the tensor cores read come first, at
  // multiples of 1 KB.
  constexpr int values_offset() const { return kPrefillStages * k_bytes(); }
  constexpr int queries_offset() const { return values_offset() + kPrefillStages * v_bytes(); }
  constexpr int float8_offset() const { return queries_offset() + query_slots() * q_bytes(); }
  constexpr int plain_offset() const {
    return float8_offset() + (float8 ? kFloat8Tiles * float8_bytes() : 0);
  }
  constexpr int scales_offset() const {
    return plain_offset() + consumers * kConsumerWarps * k_dim * 4;
  }
  constexpr int factors_offset() const { return scales_offset() + kept_tiles() * scales_bytes(); }
  constexpr int exponents_offset() const { return factors_offset() + (float8 ? rows() * 4 : 0); }
  constexpr int visits_offset() const {
    return exponents_offset() + (row_scales ? kept_tiles() * 4 : 0);
  }
  constexpr int tasks_offset() const { return visits_offset() + kept_tiles() * most_visits() * 8; }
  constexpr int masked_offset() const {
    return tasks_offset() + pieces * static_cast<int>(sizeof(DeviceTask));
  }
  constexpr int barriers_offset() const { return (masked_offset() + kept_tiles() * 4 + 7) / 8 * 8; }
  constexpr int barriers() const {
    return 4 * kPrefillStages + 3 * pieces + (float8 ? 2 * kFloat8Tiles + 1 : 0);
  }
  constexpr int bytes() const { return barriers_offset() + barriers() * 8; }
};

}  // namespace kvmesh::cuda
