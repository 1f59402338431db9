#include "runtime/tiers/kept_files.hpp"

#include <gtest/gtest.h>

#include <optional>

namespace kvmesh::test {
namespace {

PageHash page(std::uint8_t number) {
  PageHash hash;
  hash.bytes.fill(number);
  return hash;
}

std::optional<PageHash> take_excess(KeptFiles& kept) {
  const std::optional<PageHash> page = kept.excess();
  if (page) kept.left(*page);
  return page;
}

TEST(KeptFiles, TheOldestUseLeavesFirst) {
  KeptFiles kept(Eviction::kLru, 30, 10);
  for (const std::uint8_t number : {1, 2, 3}) kept.add(page(number), 10);
  EXPECT_FALSE(take_excess(kept));
  EXPECT_TRUE(kept.used(page(1)));
  EXPECT_FALSE(kept.used(page(9)));
  kept.add(page(4), 15);
  EXPECT_EQ(kept.bytes(), 45);
  EXPECT_EQ(take_excess(kept), page(2));
  EXPECT_EQ(take_excess(kept), page(3));
  EXPECT_FALSE(take_excess(kept));
  EXPECT_EQ(kept.files(), 2);
  EXPECT_EQ(kept.bytes(), 25);
}

TEST(KeptFiles, AFileThatIsWrittenAgainCountsOnce) {
  KeptFiles kept(Eviction::kLru, 25, 10);
  kept.add(page(1), 10);
  kept.add(page(2), 10);
  kept.add(page(1), 12);
  EXPECT_EQ(kept.files(), 2);
  EXPECT_EQ(kept.bytes(), 22);
  kept.add(page(3), 10);
  EXPECT_EQ(take_excess(kept), page(2));
  kept.forget(page(1));
  kept.forget(page(1));
  EXPECT_EQ(kept.bytes(), 10);
}

/// Files that are read once come one after another, many more than there is room for.
TEST(KeptFiles, AHitFileOutlivesAScanButForLru) {
  for (const Eviction policy : {Eviction::kHits, Eviction::kLru, Eviction::kTwoQueues,
                                Eviction::kS3Fifo, Eviction::kSegmented}) {
    KeptFiles kept(policy, 100, 10);
    kept.add(page(1), 10);
    EXPECT_TRUE(kept.hit(page(1)));
    EXPECT_FALSE(kept.hit(page(200)));
    for (std::uint8_t number = 2; number < 18; ++number) {
      kept.add(page(number), 10);
      (void)take_excess(kept);
      EXPECT_LE(kept.bytes(), 100);
    }
    EXPECT_EQ(kept.used(page(1)), policy != Eviction::kLru) << static_cast<int>(policy);
    EXPECT_EQ(kept.files(), 10);
  }
}

TEST(KeptFiles, EachPolicyFindsAnotherFileForOneThatCannotLeave) {
  for (const Eviction policy : {Eviction::kHits, Eviction::kLru, Eviction::kTwoQueues,
                                Eviction::kS3Fifo, Eviction::kSegmented}) {
    KeptFiles kept(policy, 30, 10);
    for (const std::uint8_t number : {1, 2, 3, 4}) kept.add(page(number), 10);
    const std::optional<PageHash> stuck = kept.excess();
    ASSERT_TRUE(stuck);
    EXPECT_TRUE(kept.used(*stuck));
    const std::optional<PageHash> next = take_excess(kept);
    ASSERT_TRUE(next);
    EXPECT_NE(*next, *stuck) << static_cast<int>(policy);
    EXPECT_FALSE(kept.excess());
  }
}

/// More files than there would be of the usual size, as short ones of an earlier run.
TEST(KeptFiles, KeepsAnyNumberOfSmallFiles) {
  KeptFiles kept(Eviction::kHits, 30, 10);
  for (std::uint8_t number = 0; number < 30; ++number) kept.add(page(number), 1);
  EXPECT_EQ(kept.files(), 30);
  EXPECT_FALSE(kept.excess());
  kept.add(page(30), 10);
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(take_excess(kept));
  EXPECT_FALSE(kept.excess());
  EXPECT_EQ(kept.bytes(), 30);
}

TEST(KeptFiles, AFileThatCannotLeaveStillCounts) {
  KeptFiles kept(Eviction::kLru, 20, 10);
  for (const std::uint8_t number : {1, 2, 3}) kept.add(page(number), 10);
  EXPECT_EQ(kept.excess(), page(1));
  EXPECT_TRUE(kept.used(page(1)));
  EXPECT_EQ(kept.bytes(), 30);
  EXPECT_EQ(take_excess(kept), page(2));
  EXPECT_FALSE(kept.excess());
}

TEST(KeptFiles, AFileThatIsLargerThanAllMayBeLeaves) {
  KeptFiles kept(Eviction::kLru, 5, 10);
  kept.add(page(1), 10);
  EXPECT_EQ(take_excess(kept), page(1));
  EXPECT_EQ(kept.bytes(), 0);
  EXPECT_FALSE(take_excess(kept));
}

}  // namespace
}  // namespace kvmesh::test
