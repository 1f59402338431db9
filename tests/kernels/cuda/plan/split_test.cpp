// The split of a line of blocks: every split unit of every block occurs once, in order, and thread
// blocks that claim the pieces finish together.
#include "kernels/cuda/plan/split.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <queue>
#include <vector>

#include "tests/support/random.hpp"

namespace kvmesh::cuda {
namespace {

using test::Random;

constexpr std::int64_t kMultiprocessors = 132;

struct Piece {
  std::size_t block;
  std::int64_t begin, end;  // split units
  bool is_split;
};

/// Splits blocks of this many split units, the longest first, for `resident_blocks` thread blocks.
std::vector<Piece> split_line(const std::vector<std::int64_t>& split_units,
                              std::int64_t split_unit_tiles, std::int64_t resident_blocks) {
  const std::int64_t total =
      split_unit_tiles * std::accumulate(split_units.begin(), split_units.end(), std::int64_t{0});
  const Line line(total, split_units.front() * split_unit_tiles, resident_blocks, kMultiprocessors);
  std::vector<Piece> pieces;
  std::int64_t begin = 0;
  for (std::size_t b = 0; b < split_units.size(); ++b) {
    const std::int32_t splits =
        line.splits(static_cast<std::int64_t>(b), begin, split_units[b], split_unit_tiles);
    for (std::int32_t split = 0; split < splits; ++split) {
      pieces.push_back({b, begin_of_split(split_units[b], splits, split),
                        begin_of_split(split_units[b], splits, split + 1), splits > 1});
    }
    begin += split_units[b] * split_unit_tiles;
  }
  return pieces;
}

/// Returns the time at which the last of `resident_blocks` thread blocks ends, if each claims the
/// next piece when it is free: in tiles, if a tile takes the same time on each.
std::int64_t end_of(const std::vector<Piece>& pieces, std::int64_t resident_blocks) {
  std::priority_queue<std::int64_t, std::vector<std::int64_t>, std::greater<>> free_at;
  for (std::int64_t i = 0; i < resident_blocks; ++i) free_at.push(0);
  std::int64_t end = 0;
  for (const Piece& piece : pieces) {
    const std::int64_t now = free_at.top() + piece.end - piece.begin;
    free_at.pop();
    free_at.push(now);
    end = std::max(end, now);
  }
  return end;
}

TEST(LineSplits, CoverEveryUnitOnce) {
  const std::uint64_t seed = test::seed_or(std::random_device{}());
  SCOPED_TRACE(seed);
  Random random(seed);
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::int64_t> split_units(static_cast<std::size_t>(random.integer(1, 60)));
    const std::int64_t longest = random.pick(std::vector<std::int64_t>{3, 40, 3000});
    for (std::int64_t& count : split_units) count = random.integer(0, longest);
    std::sort(split_units.begin(), split_units.end(), std::greater<>());
    const std::int64_t resident_blocks = random.integer(1, 300),
                       split_unit_tiles = random.integer(1, 16);
    std::vector<std::int64_t> covered(split_units.size());
    for (const Piece& piece : split_line(split_units, split_unit_tiles, resident_blocks)) {
      EXPECT_EQ(piece.begin, covered[piece.block]);
      covered[piece.block] = piece.end;
      if (piece.is_split) {
        EXPECT_GT(piece.end, piece.begin);
        EXPECT_GE((piece.end - piece.begin) * split_unit_tiles, kFewestTiles / 2);
      }
    }
    EXPECT_EQ(covered, split_units);
  }
}

TEST(LineSplits, PiecesOfSplitBlocksFitTheirRoom) {
  const std::uint64_t seed = test::seed_or(std::random_device{}());
  SCOPED_TRACE(seed);
  Random random(seed);
  for (int round = 0; round < 1000; ++round) {
    const std::int64_t resident_blocks = kMultiprocessors * random.integer(1, 3);
    std::vector<std::int64_t> split_units(static_cast<std::size_t>(random.integer(1, 64)) * 8);
    const std::int64_t longest = random.pick(std::vector<std::int64_t>{100, 2000, 20000});
    for (std::int64_t& count : split_units) count = random.integer(1, longest);
    std::sort(split_units.begin(), split_units.end(), std::greater<>());
    const std::vector<Piece> pieces = split_line(split_units, 1, resident_blocks);
    EXPECT_LE(
        std::count_if(pieces.begin(), pieces.end(), [](const Piece& p) { return p.is_split; }),
        kSplitsPerResidentBlock * resident_blocks);
  }
}

TEST(LineSplits, ThreadBlocksEndTogether) {
  const std::vector<std::vector<std::int64_t>> lines{
      std::vector<std::int64_t>(512, 128),  // 64 sequences of 8192 tokens, 8 kv heads
      std::vector<std::int64_t>(8, 2048),   // one of 131072
      std::vector<std::int64_t>(2048, 16),  // 256 of 1024
      [] {                                  // one of 65536 and 7 of 4096
        std::vector<std::int64_t> split_units(8, 1024);
        split_units.insert(split_units.end(), 56, 64);
        return split_units;
      }()};
  for (const std::vector<std::int64_t>& split_units : lines) {
    const std::int64_t total =
        std::accumulate(split_units.begin(), split_units.end(), std::int64_t{0});
    for (const std::int64_t resident_blocks :
         {kMultiprocessors, 2 * kMultiprocessors, 3 * kMultiprocessors}) {
      const double share = static_cast<double>(total) / static_cast<double>(resident_blocks);
      EXPECT_LE(
          static_cast<double>(end_of(split_line(split_units, 1, resident_blocks), resident_blocks)),
          1.05 * share + 16)
          << split_units.size() << " blocks, " << resident_blocks << " thread blocks";
    }
  }
}

TEST(LineSplits, OneLongBlockUsesEveryMultiprocessor) {
  EXPECT_GE(std::ssize(split_line({1024}, 1, 3 * kMultiprocessors)), 128);
}

TEST(LineSplits, ShortBlocksStayWhole) {
  for (const Piece& piece : split_line({2, 2, 2, 2}, 1, kMultiprocessors))
    EXPECT_FALSE(piece.is_split);
}

TEST(LineSplits, BlocksThatStartFirstStayWholeWhereTheyEndBeforeTheLine) {
  const std::vector<Piece> pieces = split_line(std::vector<std::int64_t>(512, 128), 1, 396);
  EXPECT_EQ(std::count_if(pieces.begin(), pieces.end(), [](const Piece& p) { return !p.is_split; }),
            396);
}

}  // namespace
}  // namespace kvmesh::cuda
