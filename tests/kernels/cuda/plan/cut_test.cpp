// How a line of blocks is cut: every unit of every block once, in order, into pieces that thread
// blocks which claim them finish together.
#include "kernels/cuda/plan/cut.hpp"

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
  std::int64_t begin, end;  // units
  bool is_cut;
};

/// Cuts blocks of so many units, the longest first, for `slots` thread blocks.
std::vector<Piece> cut(const std::vector<std::int64_t>& units, std::int64_t unit_tiles,
                       std::int64_t slots) {
  const std::int64_t total =
      unit_tiles * std::accumulate(units.begin(), units.end(), std::int64_t{0});
  const Line line(total, units.front() * unit_tiles, slots, kMultiprocessors);
  std::vector<Piece> pieces;
  std::int64_t begin = 0;
  for (std::size_t b = 0; b < units.size(); ++b) {
    const Parts parts = line.parts(static_cast<std::int64_t>(b), begin, units[b], unit_tiles);
    for (std::int32_t part = 0; part < parts.count(); ++part) {
      pieces.push_back({b, parts.begin(part), parts.begin(part + 1), parts.count() > 1});
    }
    begin += units[b] * unit_tiles;
  }
  return pieces;
}

/// When the last of `slots` thread blocks ends, if each claims the next piece when it is free:
/// tiles, where a tile takes each thread block as long.
std::int64_t end_of(const std::vector<Piece>& pieces, std::int64_t slots) {
  std::priority_queue<std::int64_t, std::vector<std::int64_t>, std::greater<>> free_at;
  for (std::int64_t i = 0; i < slots; ++i) free_at.push(0);
  std::int64_t end = 0;
  for (const Piece& piece : pieces) {
    const std::int64_t now = free_at.top() + piece.end - piece.begin;
    free_at.pop();
    free_at.push(now);
    end = std::max(end, now);
  }
  return end;
}

TEST(Cut, OfRandomLinesCoversEveryUnitOnce) {
  const std::uint64_t seed = test::seed_or(std::random_device{}());
  SCOPED_TRACE(seed);
  Random random(seed);
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::int64_t> units(static_cast<std::size_t>(random.integer(1, 60)));
    const std::int64_t longest = random.pick(std::vector<std::int64_t>{3, 40, 3000});
    for (std::int64_t& count : units) count = random.integer(0, longest);
    std::sort(units.begin(), units.end(), std::greater<>());
    const std::int64_t slots = random.integer(1, 300), unit_tiles = random.integer(1, 16);
    std::vector<std::int64_t> covered(units.size());
    for (const Piece& piece : cut(units, unit_tiles, slots)) {
      EXPECT_EQ(piece.begin, covered[piece.block]);
      covered[piece.block] = piece.end;
      if (piece.is_cut) {
        EXPECT_GT(piece.end, piece.begin);
        EXPECT_GE((piece.end - piece.begin) * unit_tiles, kFewestTiles / 2);
      }
    }
    EXPECT_EQ(covered, units);
  }
}

TEST(Cut, PiecesOfCutBlocksFitTheirRoom) {
  const std::uint64_t seed = test::seed_or(std::random_device{}());
  SCOPED_TRACE(seed);
  Random random(seed);
  for (int round = 0; round < 1000; ++round) {
    const std::int64_t slots = kMultiprocessors * random.integer(1, 3);
    std::vector<std::int64_t> units(static_cast<std::size_t>(random.integer(1, 64)) * 8);
    const std::int64_t longest = random.pick(std::vector<std::int64_t>{100, 2000, 20000});
    for (std::int64_t& count : units) count = random.integer(1, longest);
    std::sort(units.begin(), units.end(), std::greater<>());
    const std::vector<Piece> pieces = cut(units, 1, slots);
    EXPECT_LE(std::count_if(pieces.begin(), pieces.end(), [](const Piece& p) { return p.is_cut; }),
              kPartsPerSlot * slots);
  }
}

TEST(Cut, ThreadBlocksEndTogether) {
  const std::vector<std::vector<std::int64_t>> lines{
      std::vector<std::int64_t>(512, 128),  // 64 sequences of 8192 tokens, 8 kv heads
      std::vector<std::int64_t>(8, 2048),   // one of 131072
      std::vector<std::int64_t>(2048, 16),  // 256 of 1024
      [] {                                  // one of 65536 and 7 of 4096
        std::vector<std::int64_t> units(8, 1024);
        units.insert(units.end(), 56, 64);
        return units;
      }()};
  for (const std::vector<std::int64_t>& units : lines) {
    const std::int64_t total = std::accumulate(units.begin(), units.end(), std::int64_t{0});
    for (const std::int64_t slots :
         {kMultiprocessors, 2 * kMultiprocessors, 3 * kMultiprocessors}) {
      const double share = static_cast<double>(total) / static_cast<double>(slots);
      EXPECT_LE(static_cast<double>(end_of(cut(units, 1, slots), slots)), 1.05 * share + 16)
          << units.size() << " blocks, " << slots << " thread blocks";
    }
  }
}

TEST(Cut, OneLongBlockUsesEveryMultiprocessor) {
  EXPECT_GE(std::ssize(cut({1024}, 1, 3 * kMultiprocessors)), 128);
}

TEST(Cut, ShortBlocksStayWhole) {
  for (const Piece& piece : cut({2, 2, 2, 2}, 1, kMultiprocessors)) EXPECT_FALSE(piece.is_cut);
}

TEST(Cut, BlocksThatStartFirstStayWholeWhereTheyEndBeforeTheLine) {
  const std::vector<Piece> pieces = cut(std::vector<std::int64_t>(512, 128), 1, 396);
  EXPECT_EQ(std::count_if(pieces.begin(), pieces.end(), [](const Piece& p) { return !p.is_cut; }),
            396);
}

}  // namespace
}  // namespace kvmesh::cuda
