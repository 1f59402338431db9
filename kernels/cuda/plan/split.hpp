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
// end before the line does, or a little later.
//
// The blocks of a query block, one for each kv head, read the same pages. Those that are split are
// cut alike, and pieces of the same pages start one after another: the rows of a page's heads lie
// beside each other in memory. Here three heads, in the order of their pieces:
//
//   pages      |-------|-------|-----|-----|---|---|---|---|
//   head 0     |   0   |   3   |  6  |  9  |12 |15 |18 |21 |
//   head 1     |   1   |   4   |  7  | 10  |13 |16 |19 |22 |
//   head 2     |   2   |   5   |  8  | 11  |14 |17 |20 |23 |
//
// In fixed-split mode a block's pieces are its split units, whatever the line is like: they begin
// at multiples of a fixed number of keys.
#pragma once

#include <cstdint>

#include "kernels/cuda/plan/piece_rule.hpp"

namespace kvmesh::cuda {

/// The shortest piece of a line too short for PieceRule::least_tiles.
inline constexpr std::int64_t kFewestTiles = 4;
/// On very long lines the shortest pieces are this fraction of a thread block's share: short enough
/// to end together, few enough to merge.
inline constexpr std::int64_t kLeastFraction = 32;
/// Room for pieces of split blocks, in multiples of the thread blocks that run at once.
inline constexpr std::int64_t kSplitsPerResidentBlock = 11;
/// The fewest pieces of a head that are as long as one another; the first ones are this many.
inline constexpr std::int64_t kSectionPieces = 4;
/// With this many blocks per thread block, whole blocks end together well enough.
inline constexpr std::int64_t kManyBlocks = 8;
/// In fixed-split mode: the blocks of a long chunk that has this many, about as many as a GPU has
/// multiprocessors, stay whole. The rest of the batch must not decide this.
inline constexpr std::int64_t kWholeBlocks = 128;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t smaller_of(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

/// The fewest queries of a long chunk of kWholeBlocks blocks.
constexpr std::int64_t queries_of_whole_blocks(std::int64_t block_tokens, std::int64_t kv_heads) {
  return (ceil_div(kWholeBlocks, kv_heads) - 1) * block_tokens + 1;
}

/// The first of `units` in part number `part` of `parts`, which are as equal as can be.
constexpr std::int64_t begin_of_part(std::int64_t units, std::int64_t parts, std::int64_t part) {
  return units * part / parts;
}

/// The blocks of a query block: one for each kv head, one after another on the line.
struct HeadBlocks {
  std::int64_t rank;   ///< of head 0's block in the line
  std::int64_t begin;  ///< tile of the line where that begins
  std::int64_t heads;
  std::int64_t split_units;  ///< of each block; they are not divided
  std::int64_t split_unit_tiles;

  constexpr std::int64_t tiles() const { return split_units * split_unit_tiles; }
};

/// The pieces of all blocks, long sequences first. A thread block's share is total /
/// resident_blocks tiles.
///
/// - No block is as much as a share: blocks stay whole as long as they end before the line does, or
///   a little later. They are as good as pieces and need no merge.
/// - A share is a few tiles: every thread block gets one piece.
/// - Otherwise no piece is longer than 0.4 of a thread block's share of what is left of the line.
class Line {
 public:
  /// `total` tiles of all blocks, `longest` of one; `resident_blocks` thread blocks run at
  /// once on `multiprocessors`. `is_fixed`: each split unit is a piece.
  constexpr Line(std::int64_t total, std::int64_t longest, std::int64_t resident_blocks,
                 std::int64_t multiprocessors, const PieceRule& rule = {}, bool is_fixed = false)
      : is_fixed_(is_fixed),
        total_(total),
        resident_blocks_(resident_blocks),
        least_(least_of(rule.least_tiles, total, resident_blocks, multiprocessors)),
        one_piece_tiles_(rule.one_piece_tiles),
        stays_whole_(5 * longest * resident_blocks <= 4 * total) {}

  /// Whether the block of a head is one piece. The heads before it then are, too: less is left of
  /// the line with each.
  constexpr bool stays_whole(const HeadBlocks& blocks, std::int64_t head) const {
    if (is_fixed_) return blocks.split_units <= 1;
    return may_stay_whole(blocks.rank + head, blocks.begin + head * blocks.tiles(), blocks.tiles());
  }

  /// In how many equal pieces a block is cut; 0 if pieces get shorter along it.
  constexpr std::int64_t equal_pieces(const HeadBlocks& blocks) const {
    return is_fixed_ ? blocks.split_units : one_for_each_resident(blocks.tiles());
  }

  /// In how many pieces of a share a block divides well; 0 if it does not, or shares are large.
  constexpr std::int64_t one_for_each_resident(std::int64_t tiles) const {
    if (stays_whole_ || total_ > one_piece_tiles_ * resident_blocks_) return 0;
    // A share is total_ / resident_blocks_, rarely a whole number.
    const bool is_long = total_ > least_ * resident_blocks_;
    const std::int64_t piece = is_long ? total_ : least_, parts = is_long ? resident_blocks_ : 1;
    const std::int64_t pieces = tiles * parts / piece;
    return 20 * tiles * parts <= 23 * piece * pieces ? pieces : 0;
  }

  /// Returns the tiles of the longest piece that begins at a tile of the line.
  constexpr std::int64_t longest_piece(std::int64_t begin) const {
    const std::int64_t piece = 2 * (total_ - begin) / (5 * resident_blocks_);
    return piece > least_ ? piece : least_;
  }

 private:
  static constexpr std::int64_t least_of(std::int64_t least, std::int64_t total,
                                         std::int64_t resident_blocks,
                                         std::int64_t multiprocessors) {
    const std::int64_t resident_share = total / resident_blocks;
    if (resident_share > kLeastFraction * least) return resident_share / kLeastFraction;
    const std::int64_t share = ceil_div(total, multiprocessors);
    return share > least ? least : share < kFewestTiles ? kFewestTiles : share;
  }

  /// Blocks of about its size start together, `resident_blocks` at a time: does it end with what
  /// was left then, or a tenth later? That costs less than partials and a merge: SMs that are done
  /// leave their bandwidth to the others.
  constexpr bool may_stay_whole(std::int64_t rank, std::int64_t begin, std::int64_t tiles) const {
    if (tiles <= 2 * least_) return true;
    if (!stays_whole_) return tiles <= longest_piece(begin);
    const std::int64_t left = total_ - begin + rank % resident_blocks_ * tiles;
    return 10 * tiles * resident_blocks_ <= 11 * left;
  }

  bool is_fixed_;
  std::int64_t total_, resident_blocks_, least_, one_piece_tiles_;
  bool stays_whole_;  // blocks stay whole if they can
};

/// How the blocks of a query block that are split are cut: into sections of equal pieces, and the
/// pieces of each section are shorter than those of the one before.
class Cuts {
 public:
  struct Section {
    std::int64_t begin, end;  ///< split units
    std::int64_t pieces;      ///< of each head
  };

  /// REQUIRES: some block of `blocks` does not stay whole.
  constexpr Cuts(const Line& line, const HeadBlocks& blocks)
      : line_(line),
        blocks_(blocks),
        first_head_(first_head_of(line, blocks)),
        equal_pieces_(line.equal_pieces(blocks)),
        sections_(equal_pieces_ > 0 ? 1 : sections_of()) {}

  /// The blocks of this head and all after it are split.
  constexpr std::int64_t first_head() const { return first_head_; }
  constexpr std::int64_t heads() const { return blocks_.heads - first_head_; }
  constexpr std::int64_t sections() const { return sections_; }

  constexpr Section section(std::int64_t number) const {
    const std::int64_t begin = begin_of_part(blocks_.split_units, sections_, number);
    const std::int64_t end = begin_of_part(blocks_.split_units, sections_, number + 1);
    const std::int64_t tiles = (end - begin) * blocks_.split_unit_tiles;
    const std::int64_t pieces =
        equal_pieces_ > 0 ? equal_pieces_ : ceil_div(tiles, line_.longest_piece(place_of(begin)));
    return {begin, end, smaller_of(pieces, end - begin)};
  }

  /// Returns the pieces of each head.
  constexpr std::int64_t pieces() const {
    std::int64_t pieces = 0;
    for (std::int64_t s = 0; s < sections_; ++s) pieces += section(s).pieces;
    return pieces;
  }

  /// Returns the place of a head's piece among those of all heads that are split.
  constexpr std::int64_t place_of_piece(std::int64_t head, std::int64_t piece) const {
    return piece * heads() + head - first_head_;
  }

 private:
  static constexpr std::int64_t first_head_of(const Line& line, const HeadBlocks& blocks) {
    std::int64_t head = 0;
    while (head < blocks.heads - 1 && line.stays_whole(blocks, head)) ++head;
    return head;
  }

  /// Sections of kSectionPieces of the longest pieces: the last tiles of a section may need one
  /// piece more.
  constexpr std::int64_t sections_of() const {
    const std::int64_t sections =
        blocks_.tiles() / (kSectionPieces * line_.longest_piece(place_of(0)));
    return sections > 1 ? sections : 1;
  }

  /// Returns the tile of the line where all heads have come to a split unit.
  constexpr std::int64_t place_of(std::int64_t split_unit) const {
    return blocks_.begin + first_head_ * blocks_.tiles() +
           split_unit * blocks_.split_unit_tiles * heads();
  }

  const Line& line_;
  const HeadBlocks blocks_;
  const std::int64_t first_head_, equal_pieces_, sections_;
};

}  // namespace kvmesh::cuda
