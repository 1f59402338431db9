#include "runtime/tiers/kept_files.hpp"

#include <gtest/gtest.h>

namespace kvmesh::test {
namespace {

PageHash page(std::uint8_t number) {
  PageHash hash;
  hash.bytes.fill(number);
  return hash;
}

std::optional<PageHash> take_excess(KeptFiles& kept) {
  const std::optional<PageHash> page = kept.excess();
  if (page) kept.forget(*page);
  return page;
}

TEST(KeptFiles, TheOldestUseLeavesFirst) {
  KeptFiles kept(30);
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
  KeptFiles kept(25);
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

TEST(KeptFiles, AFileThatCannotLeaveStillCounts) {
  KeptFiles kept(20);
  for (const std::uint8_t number : {1, 2, 3}) kept.add(page(number), 10);
  EXPECT_EQ(kept.excess(), page(1));
  EXPECT_TRUE(kept.used(page(1)));
  EXPECT_EQ(kept.bytes(), 30);
  EXPECT_EQ(take_excess(kept), page(2));
  EXPECT_FALSE(kept.excess());
}

TEST(KeptFiles, AFileThatIsLargerThanAllMayBeLeaves) {
  KeptFiles kept(5);
  kept.add(page(1), 10);
  EXPECT_EQ(take_excess(kept), page(1));
  EXPECT_EQ(kept.bytes(), 0);
  EXPECT_FALSE(take_excess(kept));
}

}  // namespace
}  // namespace kvmesh::test
