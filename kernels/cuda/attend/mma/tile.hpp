// The shape of a thread block of the tensor-core kernel, and the shared memory that it takes. One
// text for the host, which picks the numbers, and for the kernel, which is compiled for them.
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
  int step_keys = 16;  // keys per step of a warp
  int stages = 3;      // steps whose keys and values are in shared memory or on their way there

  constexpr int rows() const { return 16 * row_tiles * row_warps; }
  constexpr int threads() const { return 32 * row_warps * key_warps; }
  constexpr int tile_keys() const { return step_keys * key_warps; }
  // A visit is requested `stages` steps before the keys of its page are, and is needed until those
  // are used.
  constexpr int slot_ring() const { return 2 * stages; }
};

/// The tensor cores take 16 elements of a dim at a time.
constexpr int padded_dim(int dim) { return (dim + 15) / 16 * 16; }

/// Rows of 16-bit elements in shared memory, without padding: a row that straddles the 32-byte
/// sectors of memory would fetch some of them twice. The 16-byte units of a row are exchanged
/// instead, so that one unit of 8 neighbouring rows lies in 8 different groups of banks, as
/// ldmatrix requires. Units exchange within aligned groups of `span_units`, the largest power of
/// two that divides a row:
///
///   unit u of row r lies at unit  u ^ (r * span_units / 8 % span_units)
class SharedRows {
 public:
  constexpr explicit SharedRows(int dim) : dim_(padded_dim(dim)) {}

  constexpr int units() const { return dim_ / 8; }
  constexpr int pitch_bytes() const { return dim_ * 2; }
  constexpr int bytes(int rows) const { return rows * pitch_bytes(); }
  constexpr int span_units() const {
    const int lowest_bit = units() & -units();
    return lowest_bit < 8 ? lowest_bit : 8;
  }

  /// The address of a unit, in rows that begin at `base`, a multiple of the span.
  constexpr unsigned unit(unsigned base, int row, int unit) const {
    const int exchange = row * span_units() / 8 % span_units();
    return base + static_cast<unsigned>(row * pitch_bytes() + (unit ^ exchange) * 16);
  }
  /// From unit 0 or 1 of a row, as `unit` returned it, to the one `even_units` further on. The part
  /// known at compile time stays out of the exchange.
  constexpr unsigned further(unsigned address, int even_units) const {
    const int within = even_units % span_units();
    return (address ^ static_cast<unsigned>(within * 16)) +
           static_cast<unsigned>((even_units - within) * 16);
  }

 private:
  int dim_;
};

/// Floats from row to row of the outputs that warps merge: 4 rows of a quad in different banks.
constexpr int merge_pitch(int v_dim) { return padded_dim(v_dim) + 8; }

/// Bytes of a block's shared memory, in the order of its parts.
struct AttendShared {
  AttendTile tile;
  int k_dim = 0;
  int v_dim = 0;

  constexpr int q_bytes() const { return SharedRows(k_dim).bytes(tile.rows()); }
  constexpr int k_stage_bytes() const { return SharedRows(k_dim).bytes(tile.step_keys); }
  constexpr int stage_bytes() const {
    return k_stage_bytes() + SharedRows(v_dim).bytes(tile.step_keys);
  }
  constexpr int stages_bytes() const { return tile.key_warps * tile.stages * stage_bytes(); }
  constexpr int slots_bytes() const {
    return tile.key_warps * tile.slot_ring() * tile.step_keys * 8;
  }
  // If the warps split the keys, their outputs are merged in place of the stages.
  constexpr int merge_bytes() const {
    return tile.key_warps == 1 ? 0 : tile.key_warps * tile.rows() * (merge_pitch(v_dim) + 2) * 4;
  }
  constexpr int slots_offset() const {
    return q_bytes() + (stages_bytes() > merge_bytes() ? stages_bytes() : merge_bytes());
  }
  constexpr int task_offset() const { return slots_offset() + slots_bytes(); }
  constexpr int bytes() const { return task_offset() + 32; }
};

}  // namespace kvmesh::cuda
