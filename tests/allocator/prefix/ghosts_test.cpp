#include "allocator/prefix/ghosts.hpp"

#include <gtest/gtest.h>

namespace kvmesh {
namespace {

/// Spreads numbers over all bits, as hashes are.
std::uint64_t hash_of(std::uint64_t number) {
  std::uint64_t x = (number + 1) * 0x9E37'79B9'7F4A'7C15;
  x = (x ^ x >> 30) * 0xBF58'476D'1CE4'E5B9;
  x = (x ^ x >> 27) * 0x94D0'49BB'1331'11EB;
  return x ^ x >> 31;
}

Ghost ghost(std::uint32_t hits, std::uint32_t time) {
  Ghost it;
  it.hits = hits & 3;
  it.time = time % Ghost::kTimes;
  return it;
}

TEST(Ghosts, ReturnsWhatWasAddedOnce) {
  Ghosts ghosts(64);
  ghosts.add(hash_of(1), ghost(2, Ghost::kTimes - 1));
  EXPECT_FALSE(ghosts.take(hash_of(2)));
  const std::optional<Ghost> found = ghosts.take(hash_of(1));
  ASSERT_TRUE(found);
  EXPECT_EQ(found->hits, 2u);
  EXPECT_EQ(found->time, Ghost::kTimes - 1);
  EXPECT_FALSE(ghosts.take(hash_of(1)));
}

TEST(Ghosts, ForgetsTheOldestOfARow) {
  Ghosts ghosts(8);  // one row
  for (std::uint64_t number = 0; number < 9; ++number) ghosts.add(hash_of(number), ghost(0, 0));
  EXPECT_FALSE(ghosts.take(hash_of(0)));
  EXPECT_TRUE(ghosts.take(hash_of(4)));
  ghosts.add(hash_of(9), ghost(0, 0));  // where 4 was
  for (const std::uint64_t left : {1, 2, 3, 5, 6, 7, 8, 9})
    EXPECT_TRUE(ghosts.take(hash_of(left))) << left;
}

TEST(Ghosts, RemembersNearlyAllOfHalfItsCount) {
  constexpr std::uint64_t kCount = 16'000;
  Ghosts ghosts(kCount);
  for (std::uint64_t number = 0; number < 3 * kCount; ++number)
    ghosts.add(hash_of(number), ghost(number & 1, 7));
  std::uint64_t found = 0;
  for (std::uint64_t number = 3 * kCount - kCount / 2; number < 3 * kCount; ++number) {
    const std::optional<Ghost> it = ghosts.take(hash_of(number));
    found += it && it->hits == (number & 1);
  }
  EXPECT_GT(found, kCount / 2 * 97 / 100);  // Poisson's 98 %: at most 7 newer ones in a row, of 4
}

TEST(Ghosts, WithoutRoomRememberNothing) {
  Ghosts ghosts(0);
  ghosts.add(hash_of(1), ghost(0, 0));
  EXPECT_FALSE(ghosts.take(hash_of(1)));
}

}  // namespace
}  // namespace kvmesh
