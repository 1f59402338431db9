// The places of a rank's rows in the combine over mapped memory, for the host, nvcc and NVRTC. A
// kernel that has such a target stores each row straight into the memory of the row's owner, by
// core/cuda/device/combine_target.cuh.
//
// A window is memory of a rank that all ranks of the group map. It has slots for even and for odd
// epochs (the numbers of combines and gathers), and a slot has room for each source's rows:
//
//   window | arrivals [ranks] | slot 0 | slot 1 |     slot | rows of source 0 | of source 1 | ...
//
// A row has one of two forms. In both, data, LSE and epoch are stored and loaded together, so a
// reader that sees the epoch sees the data: neither a fence nor a second message is needed.
//
//   words   16 bytes by a thread:                | 8 data | LSE | epoch |
//   lines  128 bytes by 8 threads of a warp:     | 16 data | ... (7 times) | 8 data | LSE | epoch |
//
// Words are the shorter way for few rows; lines move 128 bytes for 120 of data, words 240. An
// aligned store of 16 bytes by one thread, and of 128 bytes by one instruction of a warp, arrive
// whole within a GPU and over NVLink. (NCCL's LL128 protocol relies on the latter, and is limited
// to NVLink for the same reason.)
#pragma once

#include <cstdint>

#include "core/pod/divisor.hpp"
#include "kvmesh/dtype.hpp"

namespace kvmesh {

/// The most ranks of a group with windows: the participants of a token are the bits of one word.
inline constexpr int kMostPeerRanks = 64;

enum class RowForm : std::uint8_t { kWords, kLines };

inline constexpr int kUnitBytes = 8;   ///< of data; a unit has values of one row
inline constexpr int kCellBytes = 16;  ///< what a thread stores or loads at once
inline constexpr int kUnitsPerLine = 15;
inline constexpr int kCellsPerLine = 8;

/// How the owners of rows follow from tokens and heads: see Scatter.
struct RowShares {
  enum class Axis : std::uint8_t { kNone, kTokens, kHeads, kOwners };
  Axis axis = Axis::kNone;
  int least = 0;      ///< items of a smaller share
  int extra = 0;      ///< the first `extra` ranks have one item more
  Divisor by_more{};  ///< least + 1
  Divisor by_least{};

  constexpr int begin(int owner) const { return owner * least + (owner < extra ? owner : extra); }
  constexpr int size(int owner) const { return least + (owner < extra ? 1 : 0); }
};

/// A launch's view of the windows of a group. Trivially copyable: kernels take it by value. With 0
/// ranks there is no combine.
struct CombineTarget {
  unsigned char* windows[kMostPeerRanks];  ///< [rank], as this rank maps them
  std::int64_t slots_offset;               ///< of the row form's slots in a window
  std::int64_t slot_bytes;
  const std::uint64_t* participants;  ///< [tokens]: bit r is set if rank r has keys. Null: all have
  const std::uint64_t* owners;        ///< [tokens], of Axis::kOwners
  const std::uint32_t* last_epoch;    ///< of the combine before; constant until this one ends
  int rank, ranks;
  int tokens, heads, dim;
  int block_rows;  ///< rows of the largest share: a source's room in a slot
  int row_cells;   ///< cells of one row
  RowForm form;
  Dtype travels_as;
  RowShares shares;
  Divisor by_heads;
};

}  // namespace kvmesh
