// The division of a thread block of the decode kernels, and its shared memory. One text for the
// host, which chooses the numbers, and for the kernels, which are compiled for them.
#pragma once

#include "kernels/cuda/attend/common/params.hpp"
#include "kernels/cuda/attend/hopper/gather_warps.hpp"
#include "kernels/cuda/attend/hopper/instructions/image.hpp"

namespace kvmesh::cuda {

/// Four warps compute; a fifth copies keys and values.
inline constexpr int kMathWarps = 4;
inline constexpr int kMathThreads = 32 * kMathWarps;
inline constexpr int kDecodeThreads = kMathThreads + 32;
/// Keys that a thread block takes at a time: the 64 rows of one product.
inline constexpr int kTileKeys = 64;
/// The alignment of an atom of any image.
inline constexpr int kImageAlignment = kAtomRows * kLongRowBytes;

struct DecodeTile {
  int rows = 8;  // packed query rows, the N of the products: a multiple of 8, 32 at the most
  int k_dim = 0;
  int v_dim = 0;
  int stages = 2;           // tiles of keys and values in shared memory or on their way there
  int pieces = 2;           // pieces whose queries are in shared memory or on their way there
  bool latent = false;      // values are the first elements of the keys
  int element_bytes = 2;    // of keys and values: 1 of float8
  bool row_scales = false;  // tiles of float8 pages bring a scale for each key and value
  bool gathers = false;     // each key is brought by itself, and has a visit

  constexpr int k_bytes() const { return KvImage{k_dim, element_bytes}.bytes(kTileKeys); }
  constexpr int v_bytes() const {
    return latent ? 0 : KvImage{v_dim, element_bytes}.bytes(kTileKeys);
  }
  constexpr int stage_bytes() const { return k_bytes() + v_bytes(); }
  constexpr int threads() const { return kDecodeThreads + (gathers ? 32 * (kGatherWarps - 1) : 0); }
  /// Visits of a stage, at the most: pages of at least 8 tokens are 8 boxes.
  constexpr int visits() const { return gathers ? kTileKeys : kTileKeys / kAtomRows; }
  constexpr int q_bytes() const { return KvImage{k_dim}.bytes(rows); }
  constexpr int weights_bytes() const { return KvImage{kTileKeys}.bytes(rows); }
  /// Over float8 pages each query row has a factor, and a stage scales of its keys, then its
  /// values.
  constexpr int factors_bytes() const { return element_bytes == 1 ? rows * 4 : 0; }
  constexpr int scales_bytes() const { return row_scales ? 2 * kTileKeys * 4 : 0; }
  constexpr int columns_bytes() const { return kMathWarps * rows * 4; }

  // The parts of shared memory, in their order. Those that the tensor cores read come first, at
  // multiples of 1 KB.
  constexpr int q_offset() const { return stages * stage_bytes(); }
  constexpr int weights_offset() const {
    return (q_offset() + pieces * q_bytes() + kImageAlignment - 1) / kImageAlignment *
           kImageAlignment;
  }
  constexpr int columns_offset() const { return weights_offset() + weights_bytes(); }
  constexpr int scales_offset() const { return columns_offset() + columns_bytes(); }
  constexpr int factors_offset() const { return scales_offset() + stages * scales_bytes(); }
  constexpr int visits_offset() const { return factors_offset() + pieces * factors_bytes(); }
  constexpr int tasks_offset() const {
    return visits_offset() + stages * visits() * static_cast<int>(sizeof(PageVisit));
  }
  constexpr int masked_offset() const {
    return tasks_offset() + pieces * static_cast<int>(sizeof(DeviceTask));
  }
  constexpr int barriers_offset() const { return (masked_offset() + stages * 4 + 7) / 8 * 8; }
  constexpr int barriers() const { return 4 * stages + (gathers ? 3 : 2) * pieces; }
  constexpr int bytes() const { return barriers_offset() + barriers() * 8; }
};

}  // namespace kvmesh::cuda
