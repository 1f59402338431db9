// Tests which waits a cache of counts alone holds.
#include "allocator/prefix/trial_cache.hpp"

#include <gtest/gtest.h>

namespace kvmesh {
namespace {

constexpr std::uint64_t kCells = 8;

/// A cache, and the waits that it counts.
struct Trial {
  OpenWaits waits{kCells};
  TrialCache cache;

  void start(int kind, int count = 1) {
    for (int i = 0; i < count; ++i) {
      waits.add(kind, waits.current());
      cache.add(kind, waits.current());
    }
  }
  void advance() {
    const OpenWaits::Counts oldest = waits.advance();
    cache.forget(waits.first(), oldest);
  }
};

TEST(OpenWaits, KeepsTheLastCells) {
  OpenWaits waits(kCells);
  waits.add(2, 0);
  waits.add(2, 0);
  EXPECT_FALSE(waits.take(1, 0));
  EXPECT_TRUE(waits.take(2, 0));
  for (std::uint64_t cell = 1; cell < kCells; ++cell) EXPECT_EQ(waits.advance()[2], 0u);
  EXPECT_EQ(waits.first(), 0u);
  EXPECT_EQ(waits[0][2], 1u);
  EXPECT_EQ(waits.advance()[2], 1u);
  EXPECT_EQ(waits.first(), 1u);
  EXPECT_FALSE(waits.take(2, 0));
  EXPECT_EQ(waits[waits.current()][2], 0u);
}

TEST(TrialCache, EvictsTheCellThatWasUsedLeast) {
  Trial trial;
  for (int cell = 0; cell < 4; ++cell) {
    for (const int kind : {0, 1}) trial.start(kind, 10);
    trial.advance();
  }
  // In the order of use: kind 0 of cells 0 and 1, then kind 0 of cell 2 and kind 1 of cell 0.
  const TrialCache::Credits credits{0, 2, 0, 0, 0};
  trial.cache.shrink(trial.waits, 80, credits);
  EXPECT_TRUE(trial.cache.holds(0, 0));
  trial.cache.shrink(trial.waits, 60, credits);
  EXPECT_FALSE(trial.cache.holds(0, 1));
  EXPECT_TRUE(trial.cache.holds(0, 2));
  EXPECT_TRUE(trial.cache.holds(1, 0));
  trial.cache.shrink(trial.waits, 40, credits);
  EXPECT_FALSE(trial.cache.holds(0, 2));
  EXPECT_FALSE(trial.cache.holds(1, 0));
  EXPECT_TRUE(trial.cache.holds(0, 3));
  EXPECT_TRUE(trial.cache.holds(1, 1));
}

// Other credits later evict other cells, but what is gone does not come back.
TEST(TrialCache, HoldsNothingAgainAfterOtherCredits) {
  Trial trial;
  for (const int kind : {0, 1}) trial.start(kind, 10);
  trial.advance();
  trial.cache.shrink(trial.waits, 10, {-1, 0, 0, 0, 0});
  EXPECT_FALSE(trial.cache.holds(0, 0));
  trial.cache.shrink(trial.waits, 10, {1, 0, 0, 0, 0});
  EXPECT_FALSE(trial.cache.holds(0, 0));
  EXPECT_TRUE(trial.cache.holds(1, 0));
}

TEST(TrialCache, KeepsTheCurrentCell) {
  Trial trial;
  trial.start(0, 10);
  trial.cache.shrink(trial.waits, 5, {});
  EXPECT_TRUE(trial.cache.holds(0, 0));
  trial.advance();
  trial.cache.shrink(trial.waits, 5, {});
  EXPECT_FALSE(trial.cache.holds(0, 0));
}

// Waits that have ended, or are older than all cells, take no room.
TEST(TrialCache, CountsThePagesThatItHolds) {
  Trial trial;
  trial.start(0, 10);
  trial.advance();
  trial.start(0, 10);
  ASSERT_TRUE(trial.waits.take(0, 0));
  trial.cache.take(0, 0);
  trial.cache.shrink(trial.waits, 19, {});
  EXPECT_TRUE(trial.cache.holds(0, 0));
  for (std::uint64_t cell = 1; cell < kCells; ++cell) trial.advance();
  EXPECT_FALSE(trial.cache.holds(0, 0));
  trial.cache.shrink(trial.waits, 10, {});
  EXPECT_TRUE(trial.cache.holds(0, 1));
  // A wait that it does not hold leaves its room alone.
  trial.cache.take(0, 0);
  trial.cache.shrink(trial.waits, 9, {});
  EXPECT_FALSE(trial.cache.holds(0, 1));
}

}  // namespace
}  // namespace kvmesh
