#include "allocator/pages/page_pools.hpp"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace kvmesh {
namespace {

TEST(PagePools, HandsOutEveryPageOfARankOnce) {
  PagePools pools(3, 5);
  std::set<PageId> seen;
  for (int i = 0; i < 5; ++i) {
    const PageId page = pools.take(PageRank{1});
    EXPECT_EQ(page.rank(), PageRank{1});
    EXPECT_TRUE(pools.contains(page));
    EXPECT_TRUE(seen.insert(page).second);
  }
  EXPECT_EQ(pools.free_pages(PageRank{1}), 0);
  EXPECT_EQ(pools.free_pages(), 10);
  EXPECT_EQ(pools.free_pages_per_rank(), (std::vector<std::int64_t>{5, 0, 5}));
  EXPECT_FALSE(pools.first_free(PageRank{1}).valid());
}

TEST(PagePools, TakesARunAsSinglePages) {
  PagePools one(2, 8);
  PagePools run(2, 8);
  std::vector<PageId> pages(6);
  run.take(PageRank{0}, pages);
  for (PageId page : pages) EXPECT_EQ(one.take(PageRank{0}), page);
  EXPECT_EQ(one.free_pages(), run.free_pages());
  EXPECT_EQ(one.history(), run.history());
}

TEST(PagePools, HandsOutTheLastFreedPageFirst) {
  PagePools pools(1, 4);
  const PageId a = pools.take(PageRank{0});
  const PageId b = pools.take(PageRank{0});
  pools.give_back(a);
  pools.give_back(b);
  EXPECT_EQ(pools.take(PageRank{0}), b);
  EXPECT_EQ(pools.take(PageRank{0}), a);
}

TEST(PagePools, FreesAPageWithItsLastReference) {
  PagePools pools(1, 4);
  const PageId page = pools.take(PageRank{0});
  EXPECT_EQ(pools.reference_count(page), 1);
  pools.add_reference(page);
  EXPECT_TRUE(pools.shared(page));
  pools.give_back(page);
  EXPECT_FALSE(pools.shared(page));
  EXPECT_EQ(pools.free_pages(), 3);
  pools.give_back(page);
  EXPECT_EQ(pools.reference_count(page), 0);
  EXPECT_EQ(pools.free_pages(), 4);
}

TEST(PagePools, CountsHowOftenAPageWasHandedOut) {
  PagePools pools(1, 1);
  const PageId page{PageRank{0}, 0};
  EXPECT_EQ(pools.generation(page), 0u);
  for (std::uint32_t times = 1; times <= 3; ++times) {
    EXPECT_EQ(pools.take(PageRank{0}), page);
    EXPECT_EQ(pools.generation(page), times);
    pools.give_back(page);
    EXPECT_EQ(pools.generation(page), times);
  }
}

TEST(PagePools, HistoryDependsOnTheOrder) {
  PagePools x(1, 4);
  PagePools y(1, 4);
  std::vector<PageId> pages(2);
  x.take(PageRank{0}, pages);
  y.take(PageRank{0}, pages);
  x.give_back(pages[0]);
  x.give_back(pages[1]);
  y.give_back(pages[1]);
  y.give_back(pages[0]);
  EXPECT_NE(x.history(), y.history());
}

}  // namespace
}  // namespace kvmesh
