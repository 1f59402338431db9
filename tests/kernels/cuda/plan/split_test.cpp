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

/// The query blocks of a launch, the longest first.
struct Launch {
  std::vector<std::int64_t> split_units;  // of each query block
  std::int64_t heads = 8;
  std::int64_t split_unit_tiles = 1;

  std::int64_t tiles() const {
    return heads * split_unit_tiles *
           std::accumulate(split_units.begin(), split_units.end(), std::int64_t{0});
  }
};

struct Piece {
  std::size_t query_block;
  std::int64_t head;
  std::int64_t begin, end;  // split units
  bool is_split;
};

/// Appends the pieces of the heads of a query block that are split.
void append_split_heads(std::size_t query_block, const Cuts& cuts, std::vector<Piece>& pieces) {
  const std::size_t first = pieces.size();
  const std::int64_t pieces_of_head = cuts.pieces();
  pieces.resize(first + static_cast<std::size_t>(cuts.heads() * pieces_of_head));
  for (std::int64_t h = 0; h < cuts.heads(); ++h) {
    std::int64_t piece = 0;
    for (std::int64_t s = 0; s < cuts.sections(); ++s) {
      const Cuts::Section section = cuts.section(s);
      for (std::int64_t part = 0; part < section.pieces; ++part, ++piece) {
        const std::int64_t head = cuts.first_head() + h, units = section.end - section.begin;
        pieces[first + static_cast<std::size_t>(cuts.place_of_piece(head, piece))] = {
            query_block, head, section.begin + begin_of_part(units, section.pieces, part),
            section.begin + begin_of_part(units, section.pieces, part + 1), pieces_of_head > 1};
      }
    }
  }
}

/// Returns the pieces in the order in which `resident_blocks` thread blocks claim them.
std::vector<Piece> split_line(const Launch& launch, std::int64_t resident_blocks,
                              const PieceRule& rule = {}, bool is_fixed = false) {
  const Line line(launch.tiles(), launch.split_units.front() * launch.split_unit_tiles,
                  resident_blocks, kMultiprocessors, rule, is_fixed);
  std::vector<Piece> pieces;
  std::int64_t rank = 0, begin = 0;
  for (std::size_t q = 0; q < launch.split_units.size(); ++q) {
    const HeadBlocks blocks{rank, begin, launch.heads, launch.split_units[q],
                            launch.split_unit_tiles};
    std::int64_t head = 0;
    for (; head < launch.heads && line.stays_whole(blocks, head); ++head) {
      pieces.push_back({q, head, 0, launch.split_units[q], false});
    }
    if (head < launch.heads) append_split_heads(q, Cuts(line, blocks), pieces);
    rank += launch.heads;
    begin += launch.heads * blocks.tiles();
  }
  return pieces;
}

std::int64_t split_pieces(const std::vector<Piece>& pieces) {
  return std::count_if(pieces.begin(), pieces.end(), [](const Piece& p) { return p.is_split; });
}

/// One query block of `long_units`, and `count` of `units`.
Launch ragged(std::int64_t long_units, std::size_t count, std::int64_t units) {
  Launch launch{{long_units}};
  launch.split_units.insert(launch.split_units.end(), count, units);
  return launch;
}

Launch random_launch(Random& random, std::int64_t query_blocks, std::int64_t least,
                     std::int64_t longest) {
  Launch launch{std::vector<std::int64_t>(static_cast<std::size_t>(query_blocks))};
  for (std::int64_t& units : launch.split_units) units = random.integer(least, longest);
  std::sort(launch.split_units.begin(), launch.split_units.end(), std::greater<>());
  return launch;
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

TEST(LineSplits, CoverEveryUnitOfEveryHeadOnce) {
  const std::uint64_t seed = test::seed_or(std::random_device{}());
  SCOPED_TRACE(seed);
  Random random(seed);
  for (int round = 0; round < 3000; ++round) {
    const std::int64_t longest = random.pick(std::vector<std::int64_t>{3, 40, 3000});
    Launch launch = random_launch(random, random.integer(1, 20), 0, longest);
    launch.heads = random.integer(1, 9);
    launch.split_unit_tiles = random.integer(1, 16);
    std::vector<std::vector<std::int64_t>> covered(
        launch.split_units.size(),
        std::vector<std::int64_t>(static_cast<std::size_t>(launch.heads)));
    for (const Piece& piece : split_line(launch, random.integer(1, 300))) {
      std::int64_t& end = covered[piece.query_block][static_cast<std::size_t>(piece.head)];
      EXPECT_EQ(piece.begin, end);
      end = piece.end;
      if (piece.is_split) {
        EXPECT_GE((piece.end - piece.begin) * launch.split_unit_tiles, kFewestTiles / 2);
      }
    }
    for (std::size_t q = 0; q < covered.size(); ++q) {
      for (const std::int64_t end : covered[q]) EXPECT_EQ(end, launch.split_units[q]);
    }
  }
}

TEST(LineSplits, PiecesOfSplitBlocksFitTheirRoom) {
  const std::uint64_t seed = test::seed_or(std::random_device{}());
  SCOPED_TRACE(seed);
  Random random(seed);
  for (int round = 0; round < 1000; ++round) {
    const std::int64_t resident_blocks = kMultiprocessors * random.integer(1, 3);
    const std::int64_t longest = random.pick(std::vector<std::int64_t>{100, 2000, 20000});
    const Launch launch = random_launch(random, random.integer(1, 64), 1, longest);
    EXPECT_LE(split_pieces(split_line(launch, resident_blocks)),
              kSplitsPerResidentBlock * resident_blocks);
  }
}

// Kernels of large partials ask for longer pieces. Pieces of a section are equal, so some are up to
// a fifth shorter than the least.
TEST(LineSplits, PiecesAreAsLongAsTheKernelAsks) {
  const Launch launch{std::vector<std::int64_t>(64, 128)};
  const auto shortest = [](const std::vector<Piece>& pieces) {
    std::int64_t tiles = pieces.front().end;
    for (const Piece& piece : pieces) tiles = std::min(tiles, piece.end - piece.begin);
    return tiles;
  };
  const std::vector<Piece> usual = split_line(launch, 396);
  const std::vector<Piece> longer = split_line(launch, 396, {.least_tiles = 12});
  EXPECT_LT(split_pieces(longer), split_pieces(usual));
  EXPECT_GE(shortest(longer), 10);
  EXPECT_LT(shortest(usual), 9);
}

TEST(LineSplits, ThreadBlocksEndTogether) {
  const std::vector<Launch> launches{
      {std::vector<std::int64_t>(64, 128)},  // 64 sequences of 8192 tokens
      {{2048}},                              // one of 131072
      {{16384}},                             // one of 1048576
      {std::vector<std::int64_t>(256, 16)},  // 256 of 1024
      ragged(1024, 7, 64)};                  // one of 65536 and 7 of 4096
  for (const Launch& launch : launches) {
    for (const std::int64_t resident_blocks :
         {kMultiprocessors, 2 * kMultiprocessors, 3 * kMultiprocessors}) {
      const double share =
          static_cast<double>(launch.tiles()) / static_cast<double>(resident_blocks);
      EXPECT_LE(static_cast<double>(end_of(split_line(launch, resident_blocks), resident_blocks)),
                1.05 * share + 16)
          << launch.split_units.size() << " query blocks, " << resident_blocks << " thread blocks";
    }
  }
}

// The pages of 8 heads lie beside each other in memory.
TEST(LineSplits, PiecesOfTheSamePagesStartOneAfterAnother) {
  const std::vector<Launch> launches{
      {{512}},    // one sequence of 32768 tokens: a piece per thread block
      {{2048}},   // one of 131072
      {{16384}},  // one of 1048576
      {std::vector<std::int64_t>(8, 128)},  // 8 of 8192
      ragged(1024, 7, 64)};                 // one of 65536 and 7 of 4096
  for (const Launch& launch : launches) {
    const std::vector<Piece> pieces = split_line(launch, 3 * kMultiprocessors);
    ASSERT_EQ(split_pieces(pieces), std::ssize(pieces));
    ASSERT_EQ(std::ssize(pieces) % launch.heads, 0);
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const std::size_t head = i % static_cast<std::size_t>(launch.heads);
      const Piece &piece = pieces[i], &of_head_0 = pieces[i - head];
      EXPECT_EQ(piece.head, static_cast<std::int64_t>(head));
      EXPECT_EQ(piece.query_block, of_head_0.query_block);
      EXPECT_EQ(piece.begin, of_head_0.begin);
      EXPECT_EQ(piece.end, of_head_0.end);
    }
  }
}

// Only some heads of a query block are split where whole ones end in time.
TEST(LineSplits, HeadsThatAreSplitAreCutAlike) {
  const Launch launch{std::vector<std::int64_t>(70, 1280)};
  const std::vector<Piece> pieces = split_line(launch, 396);
  const auto first =
      std::find_if(pieces.begin(), pieces.end(), [](const Piece& piece) { return piece.is_split; });
  ASSERT_EQ(first->query_block, 49u);
  ASSERT_EQ(first->head, 4);
  EXPECT_LE(5 * 396 * first->end, 2 * (70 * 8 - 396) * 1280) << "of what the whole blocks leave";
  for (auto piece = first; piece->query_block == 49; ++piece) {
    const auto of_head_4 = piece - (piece - first) % 4;
    EXPECT_EQ(piece->head, 4 + (piece - first) % 4);
    EXPECT_EQ(piece->begin, of_head_4->begin);
    EXPECT_EQ(piece->end, of_head_4->end);
  }
}

// A share of 10.3 tiles is no reason for pieces of 11: fewer thread blocks would have one. Nor is
// one of 10.7 for 5 pieces of a block of 64, where 96 thread blocks have room for 6 each of 16
// blocks.
TEST(LineSplits, SharesThatAreNoWholeTilesAreOnePieceEach) {
  const std::vector<Piece> one = split_line({{512}}, 396);
  EXPECT_EQ(std::ssize(one), 8 * 49);
  for (const Piece& piece : one) EXPECT_LE(piece.end - piece.begin, 11);
  const std::vector<Piece> two = split_line({{64, 64}}, 96);
  EXPECT_EQ(std::ssize(two), 96);
  for (const Piece& piece : two) EXPECT_LE(piece.end - piece.begin, 11);
}

// The rest of the line is measured where a section begins, here a 31st of the sequence.
TEST(LineSplits, PiecesAreAtMostFourTenthsOfAShareOfTheRest) {
  constexpr std::int64_t kUnits = 16384, kSection = kUnits / 31 + 1, kResidentBlocks = 396,
                         kLeast = 8 * kUnits / kResidentBlocks / kLeastFraction;
  std::int64_t last = kUnits;
  for (const Piece& piece : split_line({{kUnits}}, kResidentBlocks)) {
    const std::int64_t tiles = piece.end - piece.begin,
                       rest = 8 * (kUnits - std::max<std::int64_t>(0, piece.begin - kSection));
    EXPECT_TRUE(tiles <= kLeast || 5 * kResidentBlocks * tiles <= 2 * rest) << tiles;
    EXPECT_LE(tiles, last + 1) << "equal but for rounding, or shorter than those before";
    last = tiles;
  }
  EXPECT_LE(last, kLeast);
}

// Each piece costs partials and a merge. Pieces that shrink without sections are as many as this,
// until they are the shortest.
TEST(LineSplits, SectionsNeedFewMorePieces) {
  for (const std::int64_t query_blocks : {1, 2, 8}) {
    for (const std::int64_t units : {128, 512, 2048, 16384}) {
      const Launch launch{std::vector<std::int64_t>(static_cast<std::size_t>(query_blocks), units)};
      const Line line(launch.tiles(), units, kMultiprocessors, kMultiprocessors);
      if (line.one_for_each_resident(units) > 0) continue;
      std::int64_t one_by_one = 0;
      for (std::int64_t at = 0; at < launch.tiles(); at += line.longest_piece(at)) ++one_by_one;
      EXPECT_LE(20 * split_pieces(split_line(launch, kMultiprocessors)), 22 * one_by_one)
          << query_blocks << " query blocks of " << units;
    }
  }
}

TEST(LineSplits, OneLongBlockUsesEveryMultiprocessor) {
  EXPECT_GE(std::ssize(split_line({.split_units = {1024}, .heads = 1}, 3 * kMultiprocessors)), 128);
}

TEST(LineSplits, ShortBlocksStayWhole) {
  EXPECT_EQ(split_pieces(split_line({{2, 2, 2, 2}}, kMultiprocessors)), 0);
}

TEST(LineSplits, BlocksThatStartFirstStayWholeWhereTheyEndBeforeTheLine) {
  const std::vector<Piece> pieces = split_line({std::vector<std::int64_t>(64, 128)}, 396);
  EXPECT_EQ(std::ssize(pieces) - split_pieces(pieces), 396);
}

// With two thread blocks per SM the second wave is nearly full: it ends a little later than pieces
// would, without their partials and merges.
TEST(LineSplits, BlocksOfANearlyFullWaveStayWhole) {
  EXPECT_EQ(split_pieces(split_line({std::vector<std::int64_t>(64, 128)}, 264)), 0);
}

// Whatever else is on the line, and however many thread blocks there are.
TEST(FixedSplits, EachUnitOfEachHeadIsAPiece) {
  const std::uint64_t seed = test::seed_or(std::random_device{}());
  SCOPED_TRACE(seed);
  Random random(seed);
  for (int round = 0; round < 1000; ++round) {
    const std::int64_t longest = random.pick(std::vector<std::int64_t>{1, 3, 40, 300});
    Launch launch = random_launch(random, random.integer(1, 20), 0, longest);
    launch.heads = random.integer(1, 9);
    launch.split_unit_tiles = random.integer(1, 32);
    const std::vector<Piece> pieces = split_line(launch, random.integer(1, 500), {}, true);
    std::vector<std::int64_t> found(launch.split_units.size());
    for (const Piece& piece : pieces) {
      const std::int64_t units = launch.split_units[piece.query_block];
      EXPECT_EQ(piece.is_split, units > 1);
      EXPECT_EQ(piece.end - piece.begin, std::min<std::int64_t>(units, 1));
      ++found[piece.query_block];
    }
    for (std::size_t q = 0; q < found.size(); ++q) {
      EXPECT_EQ(found[q], launch.heads * std::max<std::int64_t>(launch.split_units[q], 1));
    }
  }
}

TEST(FixedSplits, PiecesOfTheSamePagesStartOneAfterAnother) {
  const std::vector<Piece> pieces = split_line({{7, 3, 1}}, 396, {}, true);
  ASSERT_EQ(std::ssize(pieces), 8 * 11);
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    EXPECT_EQ(pieces[i].head, static_cast<std::int64_t>(i % 8));
    EXPECT_EQ(pieces[i].begin, pieces[i - i % 8].begin);
  }
}

// 128 blocks of 16 tokens for 8 heads are 16 query blocks, of which the last may have one token.
TEST(FixedSplits, LongChunksStayWhole) {
  EXPECT_EQ(queries_of_whole_blocks(16, 8), 15 * 16 + 1);
  EXPECT_EQ(queries_of_whole_blocks(16, 1), 127 * 16 + 1);
  EXPECT_EQ(queries_of_whole_blocks(16, 7), 18 * 16 + 1);
  EXPECT_EQ(queries_of_whole_blocks(16, 128), 1);
}

}  // namespace
}  // namespace kvmesh::cuda
