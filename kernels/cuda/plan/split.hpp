// Splits a line of blocks into pieces, which thread blocks claim one after another. Arithmetic
// alone, for the host's tests and for the kernel.
//
//   line       |------ 0 ------|------ 1 ------|----- 2 -----|---- 3 ----|-- 4 --|- 5 -|
//   pieces     |               |               |      |      |  |  |  |  |  |  | |  |  |
//
// SMs do not get equal shares of the memory's bandwidth, so equal shares of work end at different
// times (measured on an H200: 2 .. 10 % of a decode). Pieces that are claimed when a thread block
// is free, the long ones first, end together: each is at most 0.4 of the tiles that are left,
// divided by the thread blocks that run at once (guided self-scheduling: Polychronopoulos and Kuck,
// 1987). A block that is not split needs no merge, so those that start first stay whole where they
// end well before the line does.
#pragma once

#include <cstdint>

namespace kvmesh::cuda {

/// The shortest piece, in tiles. A line too short to give each multiprocessor this many is split
/// down to the second number. A piece costs three dependent accesses to memory before its first
/// keys arrive, and a merge.
inline constexpr std::int64_t kLeastTiles = 8;
inline constexpr std::int64_t kFewestTiles = 4;
/// On long lines the shortest pieces are a tenth of a thread block's share, up to this many tiles,
/// and on very long ones this fraction: short enough to end together, few enough to merge.
inline constexpr std::int64_t kLeastOfLongLines = 16;
inline constexpr std::int64_t kLeastFraction = 32;
/// Up to this many tiles a share is one piece: a second one would cost more to start than it evens
/// out.
inline constexpr std::int64_t kOnePieceTiles = 32;
/// Room for pieces of split blocks, in multiples of the thread blocks that run at once.
inline constexpr std::int64_t kSplitsPerResidentBlock = 11;
/// With this many blocks per thread block, whole blocks end together well enough.
inline constexpr std::int64_t kManyBlocks = 8;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t smaller_of(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

/// The first split unit of a split: splits are as equal as can be.
constexpr std::int64_t begin_of_split(std::int64_t split_units, std::int32_t splits,
                                      std::int32_t split) {
  return split_units * split / splits;
}

/// The pieces of all blocks, long sequences first. A thread block's share is total /
/// resident_blocks tiles.
///
/// - No block is as much as a share: blocks stay whole as long as they end well before the line
///   does. They are as good as pieces and need no merge.
/// - A share is a few tiles: every thread block gets one piece.
/// - Otherwise no piece is longer than 0.4 of a thread block's share of what is left of the line.
class Line {
 public:
  /// `total` tiles of all blocks, `longest` of one; `resident_blocks` thread blocks run at
  /// once on `multiprocessors`. Shares of up to `one_piece_tiles` are one piece each where that
  /// comes out.
  constexpr Line(std::int64_t total, std::int64_t longest, std::int64_t resident_blocks,
                 std::int64_t multiprocessors, std::int64_t one_piece_tiles = kOnePieceTiles)
      : total_(total),
        resident_blocks_(resident_blocks),
        least_(least_of(total, resident_blocks, multiprocessors)),
        one_piece_tiles_(one_piece_tiles),
        stays_whole_(5 * longest * resident_blocks <= 4 * total) {}

  /// Returns the number of splits of block number `rank` of the line, which begins at tile `begin`
  /// and has `split_units` of `split_unit_tiles` that are not divided.
  constexpr std::int32_t splits(std::int64_t rank, std::int64_t begin, std::int64_t split_units,
                                std::int64_t split_unit_tiles) const {
    const std::int64_t tiles = split_units * split_unit_tiles;
    if (may_stay_whole(rank, begin, tiles)) return 1;
    std::int64_t pieces = one_for_each_resident(tiles);
    if (pieces == 0) pieces = ceil_div(tiles, longest_piece(begin));
    return static_cast<std::int32_t>(smaller_of(pieces, split_units));
  }

 private:
  static constexpr std::int64_t least_of(std::int64_t total, std::int64_t resident_blocks,
                                         std::int64_t multiprocessors) {
    const std::int64_t resident_share = total / resident_blocks;
    if (resident_share > kLeastFraction * kLeastOfLongLines) return resident_share / kLeastFraction;
    if (resident_share > 10 * kLeastTiles)
      return smaller_of(resident_share / 10, kLeastOfLongLines);
    const std::int64_t share = ceil_div(total, multiprocessors);
    return share > kLeastTiles ? kLeastTiles : share < kFewestTiles ? kFewestTiles : share;
  }

  /// Blocks of about its size start together, `resident_blocks` at a time: does it end before 4/5
  /// of what was left then?
  constexpr bool may_stay_whole(std::int64_t rank, std::int64_t begin, std::int64_t tiles) const {
    if (tiles <= 2 * least_) return true;
    if (!stays_whole_) return tiles <= longest_piece(begin);
    const std::int64_t left = total_ - begin + rank % resident_blocks_ * tiles;
    return 5 * tiles * resident_blocks_ <= 4 * left;
  }

  /// In how many pieces of a share a block divides well; 0 if it does not, or shares are large.
  constexpr std::int64_t one_for_each_resident(std::int64_t tiles) const {
    const std::int64_t share = ceil_div(total_, resident_blocks_);
    if (stays_whole_ || share > one_piece_tiles_) return 0;
    const std::int64_t piece = share > least_ ? share : least_;
    const std::int64_t pieces = tiles / piece;
    return 20 * tiles <= 23 * piece * pieces ? pieces : 0;
  }

  constexpr std::int64_t longest_piece(std::int64_t begin) const {
    const std::int64_t piece = 2 * (total_ - begin) / (5 * resident_blocks_);
    return piece > least_ ? piece : least_;
  }

  std::int64_t total_, resident_blocks_, least_, one_piece_tiles_;
  bool stays_whole_;  // blocks stay whole if they can
};

}  // namespace kvmesh::cuda
