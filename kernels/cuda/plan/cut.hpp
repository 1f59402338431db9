// How a line of blocks is cut into pieces, which thread blocks claim one after another: arithmetic,
// for the host's tests and for the kernel that does it.
//
//   line       |------ 0 ------|------ 1 ------|----- 2 -----|---- 3 ----|-- 4 --|- 5 -|
//   pieces     |               |               |      |      |  |  |  |  |  |  | |  |  |
//
// SMs do not get equal shares of the memory's bandwidth, so equal shares of work end at different
// times (measured on an H200: 2 .. 10 % of a decode). Pieces that are claimed when a thread block
// is free, the long ones first, end together: none is longer than half of its share of what is left
// (guided self-scheduling: Polychronopoulos and Kuck, 1987). A block that is not cut needs no
// merge, so those that start first stay whole where they end well before the line does.
#pragma once

#include <cstdint>

namespace kvmesh::cuda {

/// No piece is cut shorter than this many tiles, except that a line which is too short to give each
/// multiprocessor so much is cut down to the second number: a piece costs three dependent accesses
/// to memory before its first keys arrive, and a merge.
inline constexpr std::int64_t kLeastTiles = 8;
inline constexpr std::int64_t kFewestTiles = 4;
/// On long lines the shortest pieces are this fraction of a thread block's share: enough to end
/// together, few enough to merge.
inline constexpr std::int64_t kLeastFraction = 32;
/// Room for pieces of cut blocks, in multiples of the thread blocks that run at once. Pieces are
/// halved log2(kLeastFraction) times at the most, half as many thread blocks' shares each time.
inline constexpr std::int64_t kPartsPerSlot = 9;
/// With so many blocks for each thread block, whole blocks end together well enough.
inline constexpr std::int64_t kManyBlocks = 8;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// The pieces of all blocks, longest blocks first.
class Line {
 public:
  /// `total` tiles of all blocks, `longest` of the first; `slots` thread blocks run at once on
  /// `multiprocessors`.
  constexpr Line(std::int64_t total, std::int64_t longest, std::int64_t slots,
                 std::int64_t multiprocessors)
      : total_(total),
        slots_(slots),
        least_(least_of(total, slots, multiprocessors)),
        first_stay_whole_(5 * longest * slots <= 4 * total) {}

  /// In how many parts a block is cut: number `rank` of the line, which begins at tile `begin` and
  /// has `units` of `unit_tiles` that are not divided.
  constexpr std::int32_t parts(std::int64_t rank, std::int64_t begin, std::int64_t units,
                               std::int64_t unit_tiles) const {
    const std::int64_t tiles = units * unit_tiles;
    if (first_stay_whole_ && rank < slots_) return 1;
    const std::int64_t longest = longest_piece(begin);
    if (tiles <= longest || tiles <= 2 * least_) return 1;
    const std::int64_t most_units = longest > unit_tiles ? longest / unit_tiles : 1;
    return static_cast<std::int32_t>(ceil_div(units, most_units));
  }

 private:
  static constexpr std::int64_t least_of(std::int64_t total, std::int64_t slots,
                                         std::int64_t multiprocessors) {
    const std::int64_t fraction = total / (slots * kLeastFraction);
    if (fraction > kLeastTiles) return fraction;
    const std::int64_t share = ceil_div(total, multiprocessors);
    return share > kLeastTiles ? kLeastTiles : share < kFewestTiles ? kFewestTiles : share;
  }

  constexpr std::int64_t longest_piece(std::int64_t begin) const {
    const std::int64_t half_share = (total_ - begin) / (2 * slots_);
    return half_share > least_ ? half_share : least_;
  }

  std::int64_t total_, slots_, least_;
  bool first_stay_whole_;  // they end before 4/5 of the line does
};

/// The first unit of a part, parts being as equal as can be.
constexpr std::int64_t begin_of_part(std::int64_t units, std::int32_t parts, std::int32_t part) {
  return units * part / parts;
}

}  // namespace kvmesh::cuda
