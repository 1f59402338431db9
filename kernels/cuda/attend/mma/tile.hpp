// How one thread block of the tensor-core kernel is cut, and the shared memory that this takes.
// One text for the host, which picks the numbers, and for the kernel, which is compiled for them.
#pragma once

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
  int step_keys = 16;  // keys that a warp takes at a time
  int stages = 3;      // steps whose keys and values are in shared memory or on their way there

  constexpr int rows() const { return 16 * row_tiles * row_warps; }
  constexpr int threads() const { return 32 * row_warps * key_warps; }
  constexpr int tile_keys() const { return step_keys * key_warps; }
  // A visit is asked for `stages` steps before the keys of its page are, and is needed until those
  // are used.
  constexpr int slot_ring() const { return 2 * stages; }
};

/// The tensor cores take 16 elements of a dim at a time.
constexpr int padded_dim(int dim) { return (dim + 15) / 16 * 16; }

/// Elements from row to row in shared memory: an odd number of 16-byte units, so that 8 rows of one
/// ldmatrix lie in 8 different groups of banks, without a swizzle to compute for each address.
constexpr int row_pitch(int dim) { return padded_dim(dim) + 8; }

/// Bytes of a block's shared memory, in the order in which they lie there.
struct AttendShared {
  AttendTile tile;
  int k_dim = 0;
  int v_dim = 0;

  constexpr int q_bytes() const { return tile.rows() * row_pitch(k_dim) * 2; }
  constexpr int k_stage_bytes() const { return tile.step_keys * row_pitch(k_dim) * 2; }
  constexpr int stage_bytes() const {
    return k_stage_bytes() + tile.step_keys * row_pitch(v_dim) * 2;
  }
  constexpr int stages_bytes() const { return tile.key_warps * tile.stages * stage_bytes(); }
  constexpr int slots_bytes() const {
    return tile.key_warps * tile.slot_ring() * tile.step_keys * 8;
  }
  // Where the warps split the keys, their outputs meet in the place of the stages.
  constexpr int merge_bytes() const {
    return tile.key_warps == 1 ? 0 : tile.key_warps * tile.rows() * (row_pitch(v_dim) + 2) * 4;
  }
  constexpr int slots_offset() const {
    return q_bytes() + (stages_bytes() > merge_bytes() ? stages_bytes() : merge_bytes());
  }
  constexpr int task_offset() const { return slots_offset() + slots_bytes(); }
  constexpr int bytes() const { return task_offset() + 32; }
};

}  // namespace kvmesh::cuda
