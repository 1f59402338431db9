// How a line of blocks is cut into equal shares for thread blocks: arithmetic, for the host's tests
// and for the kernel that does it.
//
//   blocks     |--- 0 ----|-- 1 --|------------------ 2 ------------------|-- 3 --|
//   shares     |     0      |     1      |     2      |     3      |     4      |
//
// Each block costs its tiles and what it takes to start one. A cut within a few tiles of a block's
// begin or end is moved there, as a task of that length is mostly start and end. All is found from
// the block's place on the line alone, so that every block can be cut by a thread of its own.
#pragma once

#include <cstdint>

namespace kvmesh::cuda {

/// What starting and ending a task costs, in tiles: one round trip to memory for the visits, one
/// for the first keys, and the merge of the warps; a tile takes about 1 us while memory is the
/// limit.
inline constexpr std::int64_t kTaskTiles = 2;
/// No task is cut shorter than this: below it the cost above is most of it.
inline constexpr std::int64_t kLeastTiles = 4;
/// With so many blocks for each slot their ends even out by themselves.
inline constexpr std::int64_t kManyBlocks = 4;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Tiles of a block of `visits` pages.
constexpr std::int64_t cost_of(std::int64_t visits, std::int64_t unit_visits,
                               std::int64_t unit_tiles) {
  return ceil_div(visits, unit_visits) * unit_tiles + kTaskTiles;
}

/// What each of `slots` thread blocks gets of a line of `total` tiles.
constexpr std::int64_t share_of_line(std::int64_t total, std::int64_t slots,
                                     std::int64_t unit_tiles) {
  const std::int64_t least = (kLeastTiles > unit_tiles ? kLeastTiles : unit_tiles) + kTaskTiles;
  const std::int64_t share = ceil_div(total, slots);
  return share > least ? share : least;
}

/// One block's parts.
class BlockCut {
 public:
  /// A block of `units` that begins at tile `begin` of the line.
  constexpr BlockCut(std::int64_t begin, std::int64_t units, std::int64_t unit_tiles,
                     std::int64_t share)
      : begin_(begin), units_(units), unit_tiles_(unit_tiles), share_(share) {
    const std::int64_t least = ceil_div(kLeastTiles, unit_tiles);
    const std::int64_t end = begin + units * unit_tiles + kTaskTiles;
    first_owner_ = begin / share;
    first_cut_ = first_owner_ + 1;
    last_cut_ = ceil_div(end, share) - 1;
    if (first_cut_ <= last_cut_ && unit_at(first_cut_) < least) first_owner_ = first_cut_++;
    if (first_cut_ <= last_cut_ && unit_at(last_cut_) > units - least) --last_cut_;
  }

  constexpr std::int32_t parts() const {
    return first_cut_ <= last_cut_ ? static_cast<std::int32_t>(last_cut_ - first_cut_ + 2) : 1;
  }
  /// The units [begin(part), begin(part + 1)) are a part's.
  constexpr std::int64_t begin(std::int32_t part) const {
    if (part == 0) return 0;
    return part == parts() ? units_ : unit_at(first_cut_ + part - 1);
  }
  /// The thread block that has the part.
  constexpr std::int32_t owner(std::int32_t part) const {
    return static_cast<std::int32_t>(part == 0 ? first_owner_ : first_cut_ + part - 1);
  }

 private:
  constexpr std::int64_t unit_at(std::int64_t cut) const {
    return (cut * share_ - begin_) / unit_tiles_;
  }

  std::int64_t begin_, units_, unit_tiles_, share_;
  std::int64_t first_owner_ = 0, first_cut_ = 0, last_cut_ = 0;
};

}  // namespace kvmesh::cuda
