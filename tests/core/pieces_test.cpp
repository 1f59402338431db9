#include "core/pieces.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace kvmesh {
namespace {

constexpr std::size_t kGranule = 16;

std::vector<ByteRange> applied(std::vector<ByteRange> pieces, const PieceChanges& changes) {
  for (const ByteRange& piece : changes.remove)
    EXPECT_EQ(std::erase(pieces, piece), 1u) << piece.first;
  pieces.insert(pieces.end(), changes.add.begin(), changes.add.end());
  std::ranges::sort(pieces);
  return pieces;
}

TEST(Pieces, AddsWholeGranulesAndCutsThem) {
  const PieceChanges few = piece_changes({}, std::vector<ByteRange>{{17, 18}, {20, 33}}, kGranule);
  EXPECT_EQ(few.add, (std::vector<ByteRange>{{16, 32}, {32, 48}}));
  const PieceChanges many = piece_changes({}, std::vector<ByteRange>{{0, 1600}}, kGranule);
  EXPECT_EQ(many.add.size(), 8u);
  EXPECT_EQ(many.add[0], (ByteRange{0, 208})) << "100 granules in 8 pieces of 13 at most";
  EXPECT_TRUE(piece_changes({}, std::vector<ByteRange>{{5, 5}}, kGranule).add.empty());
}

TEST(Pieces, KeepsPiecesThatAreUsedInPart) {
  const std::vector<ByteRange> pieces{{0, 32}, {32, 64}, {64, 96}};
  const PieceChanges changes = piece_changes(pieces, std::vector<ByteRange>{{40, 41}}, kGranule);
  EXPECT_TRUE(changes.add.empty());
  EXPECT_EQ(changes.remove, (std::vector<ByteRange>{{0, 32}, {64, 96}}));
}

TEST(Pieces, AlwaysCoverWhatIsUsedWithoutOverlap) {
  std::mt19937 random(3);
  std::vector<ByteRange> pieces;
  for (int round = 0; round < 2000; ++round) {
    std::vector<ByteRange> used;
    for (unsigned i = 0; i < random() % 5; ++i) {
      const std::size_t first = random() % 1000;
      used.push_back({first, first + random() % 400});
    }
    pieces = applied(pieces, piece_changes(pieces, used, kGranule));
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      ASSERT_LT(pieces[i].first, pieces[i].last);
      ASSERT_EQ(pieces[i].first % kGranule + pieces[i].last % kGranule, 0u);
      ASSERT_TRUE(i == 0 || pieces[i - 1].last <= pieces[i].first);
    }
    for (const ByteRange& range : used) {
      for (std::size_t byte = range.first; byte < range.last; ++byte) {
        ASSERT_TRUE(std::ranges::any_of(pieces, [&](const ByteRange& piece) {
          return piece.first <= byte && byte < piece.last;
        })) << byte;
      }
    }
    for (const ByteRange& piece : pieces) {
      ASSERT_TRUE(std::ranges::any_of(used, [&](const ByteRange& range) {
        return range.first < range.last && range.first / kGranule * kGranule < piece.last &&
               piece.first < (range.last + kGranule - 1) / kGranule * kGranule;
      })) << "a piece that no range needs";
    }
  }
}

}  // namespace
}  // namespace kvmesh
