// The shape of a thread block of the tensor-core kernel, and the shared memory that it takes. One
// text for the host, which picks the numbers, and for the kernel, which is compiled for them.
#pragma once

#include "kernels/cuda/attend/common/shared_rows.hpp"

namespace kvmesh::cuda {

/// A block has row_warps x key_warps warps of 16 * row_tiles rows each.
///
///   decode: the warps share the rows and split the keys (row_warps = 1); each has stages of its
///           own and waits for no other until the end, where the partials are merged
///   prefill: the warps share the keys and split the rows (key_warps = 1)
struct AttendTile {
  int row_tiles = 1;
  int row_warps = 1;
  int key_warps = 4;
  int step_keys = 16;  // keys per step of a warp
  int stages = 3;      // steps whose keys and values are in shared memory or on their way there

  constexpr int rows() const { return 16 * row_tiles * row_warps; }
  constexpr int threads() const { return 32 * row_warps * key_warps; }
  constexpr int tile_keys() const { return step_keys * key_warps; }
  // A visit is requested `stages` steps before the keys of its page are, and is needed until those
  // are used.
  constexpr int slot_ring() const { return 2 * stages; }
};

/// Floats from row to row of the outputs that warps merge: 4 rows of a quad in different banks.
constexpr int merge_pitch(int v_dim) { return padded_dim(v_dim) + 8; }

/// Bytes of a block's shared memory, in the order of its parts.
struct AttendShared : StreamShared<AttendTile> {
  // If the warps split the keys, their outputs are merged in place of the stages.
  constexpr int merge_bytes() const {
    return tile.key_warps == 1 ? 0 : tile.key_warps * tile.rows() * (merge_pitch(v_dim) + 2) * 4;
  }
  constexpr int slots_offset() const { return slots_offset_after(merge_bytes()); }
  constexpr int task_offset() const { return slots_offset() + slots_bytes(); }
  constexpr int bytes() const { return task_offset() + 32; }
};

}  // namespace kvmesh::cuda
