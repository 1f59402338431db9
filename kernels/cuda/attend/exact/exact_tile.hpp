// The shape of a thread block of the kernel of exact sums, and the shared memory that it takes. One
// text for the host, which picks the numbers, and for the kernel, which is compiled for them.
#pragma once

#include <cstdint>

#include "kernels/cuda/attend/common/shared_rows.hpp"

namespace kvmesh::cuda {

/// Rows are columns of the products here, eight to a warp.
inline constexpr int kExactWarpRows = 8;
/// Output columns of a warp: four registers each for 1/4 of its 8 rows, 128 in all.
inline constexpr int kExactWarpColumns = 128;

/// Warps that share their keys split the rows, and the columns of wide outputs.
///
///   few rows:   one warp has all rows and columns, and key_warps of them split the keys: each has
///               stages of its own, and they meet at the end
///   more:       row_warps * column_warps warps share all keys (key_warps = 1)
struct ExactTile {
  int row_warps = 1;
  int column_warps = 1;
  int key_warps = 4;
  int step_keys = 16;   // rows of a step in shared memory
  int stages = 3;       // as AttendTile's
  int chunk_keys = 16;  // keys among 16 rows of a step

  constexpr int sharing_warps() const { return row_warps * column_warps; }
  constexpr int rows() const { return kExactWarpRows * row_warps; }
  constexpr int threads() const { return 32 * sharing_warps() * key_warps; }
  /// Keys that a block takes in one step.
  constexpr int tile_keys() const { return step_keys / 16 * chunk_keys * key_warps; }
  constexpr int slot_ring() const { return 2 * stages; }
};

/// The sums of a row while the warps of a block join theirs.
struct JoinedRow {
  std::int32_t max;  // as ordered_bits
  std::int32_t o_bin;
  std::int32_t sum_bin;
  std::int32_t former_o_bin;  // of what the row has in memory
  std::int32_t former_sum_bin;
  std::uint32_t sum[4];  // limbs without offsets
};

/// Bytes of a block's shared memory, in the order of its parts.
struct ExactShared : StreamShared<ExactTile> {
  // Where the warps split the keys, the limbs of all outputs are joined in place of the stages.
  constexpr int limbs_bytes() const {
    return tile.key_warps == 1 ? 0 : tile.rows() * padded_dim(v_dim) * 16;
  }
  constexpr int slots_offset() const { return slots_offset_after(limbs_bytes()); }
  constexpr int joined_offset() const { return slots_offset() + slots_bytes(); }
  constexpr int joined_bytes() const {
    return (tile.rows() * static_cast<int>(sizeof(JoinedRow)) + 15) / 16 * 16;
  }
  constexpr int task_offset() const { return joined_offset() + joined_bytes(); }
  constexpr int bytes() const { return task_offset() + 32; }
};

}  // namespace kvmesh::cuda
