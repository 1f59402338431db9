// How a line of blocks is cut: every unit of every block once, in order, thread blocks alike.
#include "kernels/cuda/plan/cut.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <vector>

#include "tests/support/random.hpp"

namespace kvmesh::cuda {
namespace {

using test::Random;

struct Part {
  std::int64_t block, begin, end;
  std::int32_t owner;
};

/// Cuts blocks of so many units for `slots` thread blocks.
std::vector<Part> cut(const std::vector<std::int64_t>& units, std::int64_t unit_tiles,
                      std::int64_t slots) {
  std::int64_t total = 0, begin = 0;
  for (std::int64_t count : units) total += count * unit_tiles + kTaskTiles;
  const std::int64_t share = share_of_line(total, slots, unit_tiles);
  std::vector<Part> parts;
  for (std::size_t b = 0; b < units.size(); ++b) {
    const BlockCut block(begin, units[b], unit_tiles, share);
    for (std::int32_t part = 0; part < block.parts(); ++part) {
      parts.push_back({static_cast<std::int64_t>(b), block.begin(part), block.begin(part + 1),
                       block.owner(part)});
    }
    begin += units[b] * unit_tiles + kTaskTiles;
  }
  return parts;
}

void expect_covers(const std::vector<std::int64_t>& units, const std::vector<Part>& parts,
                   std::int64_t slots) {
  std::map<std::int64_t, std::int64_t> next;
  std::int32_t owner = 0;
  for (const Part& part : parts) {
    EXPECT_EQ(part.begin, next[part.block]);
    EXPECT_GE(part.end, part.begin);
    next[part.block] = part.end;
    EXPECT_GE(part.owner, owner) << "owners rise along the line";
    owner = part.owner;
  }
  EXPECT_LT(owner, slots);
  ASSERT_EQ(next.size(), units.size());
  for (std::size_t b = 0; b < units.size(); ++b) {
    EXPECT_EQ(next[static_cast<std::int64_t>(b)], units[b]);
  }
}

TEST(Cut, OfRandomLinesCoversEveryUnitOnce) {
  const std::uint64_t seed = test::seed_or(std::random_device{}());
  SCOPED_TRACE(seed);
  Random random(seed);
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::int64_t> units(static_cast<std::size_t>(random.integer(1, 60)));
    const std::int64_t longest = random.pick(std::vector<std::int64_t>{3, 40, 3000});
    for (std::int64_t& count : units) count = random.integer(0, longest);
    const std::int64_t slots = random.integer(1, 300), unit_tiles = random.integer(1, 16);
    const std::vector<Part> parts = cut(units, unit_tiles, slots);
    expect_covers(units, parts, slots);
    // A cut makes one part more, and there is at most one at each border of thread blocks.
    EXPECT_LT(std::ssize(parts), std::ssize(units) + slots);
    std::map<std::int64_t, int> parts_of;
    for (const Part& part : parts) ++parts_of[part.block];
    const std::int64_t least = ceil_div(kLeastTiles, unit_tiles);
    for (const Part& part : parts) {
      if (parts_of[part.block] > 1) {
        EXPECT_GE(part.end - part.begin,
                  std::min(least, units[static_cast<std::size_t>(part.block)]));
      }
    }
  }
}

TEST(Cut, GivesThreadBlocksAboutEqualShares) {
  const std::vector<std::int64_t> units{40'000, 3, 700, 0, 12'000, 900};
  constexpr std::int64_t kSlots = 264;
  std::map<std::int32_t, std::int64_t> tiles;
  for (const Part& part : cut(units, 1, kSlots)) {
    tiles[part.owner] += part.end - part.begin + kTaskTiles;
  }
  std::int64_t total = 0, longest = 0;
  for (const auto& [owner, sum] : tiles) {
    total += sum;
    longest = std::max(longest, sum);
  }
  EXPECT_LE(longest, ceil_div(total, kSlots) + kLeastTiles + 2 * kTaskTiles);
}

TEST(Cut, OfOneLongBlockUsesEveryThreadBlock) {
  const std::vector<Part> parts = cut({2048}, 1, 132);
  EXPECT_GE(std::ssize(parts), 128);
}

TEST(Cut, LeavesShortBlocksWhole) {
  for (const Part& part : cut({2, 2, 2, 2}, 1, 132)) EXPECT_EQ(part.end - part.begin, 2);
}

}  // namespace
}  // namespace kvmesh::cuda
