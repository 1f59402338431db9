// How a line of blocks is split into pieces, which thread blocks claim one after another:
// arithmetic, for the host's tests and for the kernel that does it.
//
//   line       |------ 0 ------|------ 1 ------|----- 2 -----|---- 3 ----|-- 4 --|- 5 -|
//   pieces     |               |               |      |      |  |  |  |  |  |  | |  |  |
//
// SMs do not get equal shares of the memory's bandwidth, so equal shares of work end at different
// times (measured on an H200: 2 .. 10 % of a decode). Pieces that are claimed when a thread block
// is free, the long ones first, end together: none is longer than half of its share of what is left
// (guided self-scheduling: Polychronopoulos and Kuck, 1987). A block that is not split needs no
// merge, so those that start first stay whole where they end well before the line does.
#pragma once

#include <cstdint>

namespace kvmesh::cuda {

/// No piece is split shorter than this many tiles, except that a line which is too short to give
/// each multiprocessor so much is split down to the second number: a piece costs three dependent
/// accesses to memory before its first keys arrive, and a merge.
inline constexpr std::int64_t kLeastTiles = 8;
inline constexpr std::int64_t kFewestTiles = 4;
/// On long lines the shortest pieces are a tenth of a thread block's share, up to this many tiles,
/// and on very long ones this fraction: short enough to end together, few enough to merge.
inline constexpr std::int64_t kLeastOfLongLines = 16;
inline constexpr std::int64_t kLeastFraction = 32;
/// Up to this many tiles a share is computed as one piece: a second one would cost more to start
/// than it evens out.
inline constexpr std::int64_t kOnePieceTiles = 32;
/// Room for pieces of split blocks, in multiples of the thread blocks that run at once.
inline constexpr std::int64_t kSplitsPerResidentBlock = 9;
/// With so many blocks for each thread block, whole blocks end together well enough.
inline constexpr std::int64_t kManyBlocks = 8;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t smaller_of(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

/// The splits of one block: first some long ones, then short ones.
struct Splits {
  std::int64_t split_units = 0;
  std::int64_t long_split_units = 0;  // that the long ones have together
  std::int32_t longs = 0;
  std::int32_t shorts = 1;

  constexpr std::int32_t count() const { return longs + shorts; }
  /// The first split unit of a split; of split count(), the end.
  constexpr std::int64_t begin(std::int32_t split) const {
    if (split < longs) return long_split_units * split / longs;
    const std::int64_t further = split - longs;
    return long_split_units +
           (shorts == 0 ? 0 : (split_units - long_split_units) * further / shorts);
  }
};

/// The pieces of all blocks, longest blocks first. A thread block's share is total /
/// resident_blocks tiles.
///
/// - No block is as much as a share: blocks stay whole as long as they end well before the line
/// does.
///   They are as good as pieces and need no merge.
/// - A share is a few tiles: every thread block gets one piece.
/// - Otherwise the first 0.72 of the line are split into long pieces, all of which start at once.
/// What
///   is left, in short pieces, evens out what makes one thread block slower than another.
class Line {
 public:
  /// `total` tiles of all blocks, `longest` of the first; `resident_blocks` thread blocks run at
  /// once on `multiprocessors`.
  constexpr Line(std::int64_t total, std::int64_t longest, std::int64_t resident_blocks,
                 std::int64_t multiprocessors)
      : total_(total),
        resident_blocks_(resident_blocks),
        least_(least_of(total, resident_blocks, multiprocessors)),
        stays_whole_(5 * longest * resident_blocks <= 4 * total) {}

  /// The splits of block number `rank` of the line, which begins at tile `begin` and has
  /// `split_units` of `split_unit_tiles` that are not divided.
  constexpr Splits splits(std::int64_t rank, std::int64_t begin, std::int64_t split_units,
                          std::int64_t split_unit_tiles) const {
    const std::int64_t tiles = split_units * split_unit_tiles;
    if (may_stay_whole(rank, begin, tiles)) return {.split_units = split_units};
    if (const std::int64_t pieces = one_for_each_resident(tiles); pieces > 0) {
      return {.split_units = split_units, .shorts = count_of(pieces, split_units)};
    }
    Splits splits{.split_units = split_units};
    splits.long_split_units =
        stays_whole_ ? 0 : long_split_units_of(begin, split_units, split_unit_tiles);
    splits.longs = splits.long_split_units == 0
                       ? 0
                       : count_of(count_of_long(splits.long_split_units * split_unit_tiles),
                                  splits.long_split_units);
    const std::int64_t short_split_units = split_units - splits.long_split_units;
    const std::int64_t most = short_piece(begin + splits.long_split_units * split_unit_tiles);
    splits.shorts =
        count_of(ceil_div(short_split_units * split_unit_tiles, most), short_split_units);
    return splits;
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

  static constexpr std::int32_t count_of(std::int64_t pieces, std::int64_t split_units) {
    return static_cast<std::int32_t>(smaller_of(pieces, split_units));
  }

  /// Blocks of about its size start together, `resident_blocks` at a time: does it end before 4/5
  /// of what was left then?
  constexpr bool may_stay_whole(std::int64_t rank, std::int64_t begin, std::int64_t tiles) const {
    if (tiles <= 2 * least_) return true;
    if (!stays_whole_) return tiles <= short_piece(begin);
    const std::int64_t left = total_ - begin + rank % resident_blocks_ * tiles;
    return 5 * tiles * resident_blocks_ <= 4 * left;
  }

  /// In how many pieces of a share a block divides well; 0 if it does not, or shares are large.
  constexpr std::int64_t one_for_each_resident(std::int64_t tiles) const {
    const std::int64_t share = ceil_div(total_, resident_blocks_);
    if (stays_whole_ || share > kOnePieceTiles) return 0;
    const std::int64_t piece = share > least_ ? share : least_;
    const std::int64_t pieces = tiles / piece;
    return 20 * tiles <= 23 * piece * pieces ? pieces : 0;
  }

  /// Units that lie in the first 0.72 of the line; all or none where the rest would be a sliver.
  constexpr std::int64_t long_split_units_of(std::int64_t begin, std::int64_t split_units,
                                             std::int64_t split_unit_tiles) const {
    const std::int64_t tiles = 18 * total_ / 25 - begin;
    if (tiles < least_) return 0;
    const std::int64_t inside = tiles / split_unit_tiles;
    return (split_units - inside) * split_unit_tiles < least_ ? split_units : inside;
  }

  /// Long pieces are 0.72 .. 0.9 of a share, so that all start at once, or half of one at the most,
  /// so that two in turn end in time.
  constexpr std::int64_t count_of_long(std::int64_t tiles) const {
    const std::int64_t count = ceil_div(10 * tiles * resident_blocks_, 9 * total_);
    const bool start_at_once = 25 * tiles * resident_blocks_ >= 18 * total_ * count;
    const std::int64_t most = tiles > least_ ? tiles / least_ : 1;
    return smaller_of(start_at_once ? count : ceil_div(2 * tiles * resident_blocks_, total_), most);
  }

  /// Half of a share of what is left.
  constexpr std::int64_t short_piece(std::int64_t begin) const {
    const std::int64_t half = (total_ - begin) / (2 * resident_blocks_);
    return half > least_ ? half : least_;
  }

  std::int64_t total_, resident_blocks_, least_;
  bool stays_whole_;  // blocks, as long as they can
};

}  // namespace kvmesh::cuda
