// Shared memory of the kernels that multiply by mma.sync: rows of queries, and stages of keys and
// values. One text for the host and for NVRTC.
#pragma once

namespace kvmesh::cuda {

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

/// The parts of a block's shared memory that hold queries, and keys and values on their way:
///
///   queries     rows of k_dim
///   stages      of each key warp: `stages` steps, each rows of keys and then rows of values
///   slots       of each key warp: the visits of the steps
///
/// `Tile` has rows(), key_warps, step_keys, stages and slot_ring().
template <class Tile>
struct StreamShared {
  Tile tile;
  int k_dim = 0;
  int v_dim = 0;

  constexpr int q_bytes() const { return SharedRows(k_dim).bytes(tile.rows()); }
  constexpr int k_stage_bytes() const { return SharedRows(k_dim).bytes(tile.step_keys); }
  constexpr int stage_bytes() const {
    return k_stage_bytes() + SharedRows(v_dim).bytes(tile.step_keys);
  }
  constexpr int stages_bytes() const { return tile.key_warps * tile.stages * stage_bytes(); }
  /// Where the slots begin, if the end of a task takes this many bytes in place of the stages.
  constexpr int slots_offset_after(int end_bytes) const {
    return q_bytes() + (stages_bytes() > end_bytes ? stages_bytes() : end_bytes);
  }
  constexpr int slots_bytes() const {
    return tile.key_warps * tile.slot_ring() * tile.step_keys * 8;
  }
};

}  // namespace kvmesh::cuda
