// How uneven ranks of many pages get before pages move beside other operations.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "kvmesh/allocator.hpp"
#include "tests/allocator/seed.hpp"

namespace kvmesh {
namespace {

constexpr RebalanceOptions kNoLimit{.limit = 1 << 20};

std::int64_t held_pages(const PageAllocator& pages, PageRank rank) {
  return pages.pool_pages(rank) - pages.free_pages(rank);
}

/// Two ranks of 650 pages together; then rank 0 has `more` more than its share, rank 1 as many
/// fewer.
PageAllocator uneven_by(std::int64_t more) {
  PageAllocator pages(
      {.ranks = 2, .pages_per_rank = 1000, .page_size = 1, .placement = Placement::kStriped});
  const std::int64_t each = 325 - more;
  pages.append(pages.create(), 2 * each);  // page i on rank i mod 2
  for (std::int64_t i = 0; i < 4 * more; ++i) {
    const SequenceId one = pages.create();
    pages.append(one, 1);
    if (pages.pages(one)[0].rank() == PageRank{1}) pages.erase(one);
  }
  return pages;
}

TEST(UnevenRanks, MoveNothingUpToAPartIn64) {
  PageAllocator even = uneven_by(5);  // 325 / 64
  ASSERT_EQ(held_pages(even, PageRank{0}), 330);
  ASSERT_EQ(held_pages(even, PageRank{1}), 320);
  EXPECT_TRUE(even.start_rebalance_now(kNoLimit).empty());
  EXPECT_EQ(even.start_rebalance(kNoLimit.limit).size(), 5u) << "which levels in any case";
}

TEST(UnevenRanks, LevelWhenTheyAreOverThat) {
  PageAllocator uneven = uneven_by(6);
  ASSERT_EQ(held_pages(uneven, PageRank{0}), 331);
  ASSERT_EQ(held_pages(uneven, PageRank{1}), 319);
  EXPECT_EQ(uneven.start_rebalance_now(kNoLimit).size(), 6u);
  uneven.finish_moves();
  EXPECT_EQ(held_pages(uneven, PageRank{0}), held_pages(uneven, PageRank{1}));
}

/// One of a hundred ranks, with shares of about 200 pages, lacks some; no other has many too many.
TEST(UnevenRanks, LeaveARankThatLacksUpToAnEighth) {
  for (const std::int64_t lacking : {20, 30}) {
    PageAllocator pages(
        {.ranks = 100, .pages_per_rank = 300, .page_size = 1, .placement = Placement::kStriped});
    pages.append(pages.create(), 100 * 170);
    std::int64_t left = lacking;
    for (int i = 0; i < 100 * 30; ++i) {
      const SequenceId one = pages.create();
      pages.append(one, 1);
      if (pages.pages(one)[0].rank() == PageRank{99} && left-- > 0) pages.erase(one);
    }
    ASSERT_EQ(held_pages(pages, PageRank{99}), 200 - lacking);
    ASSERT_EQ(held_pages(pages, PageRank{0}), 200);
    EXPECT_EQ(pages.start_rebalance_now(kNoLimit).empty(), lacking == 20) << lacking;
  }
}

/// Each of many other ranks has few pages more than its share then.
TEST(UnevenRanks, FillARankThatHasComeBack) {
  AllocatorOptions options{
      .ranks = 100, .pages_per_rank = 300, .page_size = 1, .home_threshold_tokens = 0};
  options.pool_pages.assign(100, 300);
  options.pool_pages.back() = 0;
  PageAllocator pages(options);
  pages.append(pages.create(), 99 * 200);
  const PageRank other{0}, back{99};
  ASSERT_EQ(held_pages(pages, other), 200);
  ASSERT_TRUE(pages.start_resize(back, 300).empty());
  pages.finish_moves();
  while (!pages.start_rebalance_now({.limit = 20}).empty()) pages.finish_moves();
  EXPECT_GE(held_pages(pages, back), 198 - 198 / 8);
}

/// Pages that a short sequence has left behind follow it, however few they are.
TEST(UnevenRanks, BringPagesHomeAtAnyTime) {
  PageAllocator pages(
      {.ranks = 2, .pages_per_rank = 1000, .pool_pages = {1000, 0}, .page_size = 4});
  std::vector<SequenceId> sequences;
  for (int i = 0; i < 8; ++i) {
    sequences.push_back(pages.create());
    pages.append(sequences.back(), 401);  // 100 full pages, and one that steps write
  }
  ASSERT_TRUE(pages.start_resize(PageRank{1}, 1000).empty());
  pages.finish_moves();
  ASSERT_EQ(pages.start_rebalance_now(kNoLimit).size(), 400u);
  pages.finish_moves();
  for (const SequenceId sequence : sequences) pages.append(sequence, 4);
  EXPECT_EQ(pages.start_rebalance_now(kNoLimit).size(), 4u) << "of 408 / 64 that may be over";
  pages.finish_moves();
  EXPECT_TRUE(pages.start_rebalance_now(kNoLimit).empty());
}

/// Sequences that come, grow and end, as many as fit in 0.8 of the pages.
class Churn {
 public:
  explicit Churn(Placement placement)
      : pages_({.ranks = 4, .pages_per_rank = 4000, .placement = placement}),
        random_(test::seed()) {}

  void step() {
    while (pages_.free_pages() > 3200) {
      sequences_.push_back({pages_.create(), test::uniform(random_, 20, 400)});
      pages_.append(sequences_.back().id, test::uniform(random_, 50, 6000));
    }
    for (Running& each : sequences_) {
      pages_.append(each.id, 1);
      if (--each.steps == 0) pages_.erase(each.id);
    }
    std::erase_if(sequences_, [](const Running& each) { return each.steps == 0; });
  }
  /// Returns how many pages have moved.
  std::int64_t level() {
    return pages_.start_rebalance_now(kNoLimit).empty() ? 0 : pages_.finish_moves();
  }
  /// The pages of the fullest rank by the mean.
  double unevenness() const {
    std::int64_t most = 0, all = 0;
    for (PageRank rank{0}; rank.value < 4; ++rank.value) {
      most = std::max(most, held_pages(pages_, rank));
      all += held_pages(pages_, rank);
    }
    return 4 * static_cast<double>(most) / static_cast<double>(all);
  }

 private:
  struct Running {
    SequenceId id;
    std::int64_t steps;
  };
  PageAllocator pages_;
  std::mt19937_64 random_;
  std::vector<Running> sequences_;
};

TEST(UnevenRanks, MoveInFewOfTheStepsOfAServer) {
  SCOPED_TRACE(test::seed_note());
  for (const Placement placement : {Placement::kBalanced, Placement::kStriped}) {
    SCOPED_TRACE(name(placement));
    Churn churn(placement);
    int levelled = 0;
    for (int step = 0; step < 400; ++step) {
      churn.step();
      const bool has_begun = step >= 100;
      const bool has_moved = churn.level() > 0;
      if (!has_begun) continue;
      levelled += has_moved ? 1 : 0;
      ASSERT_LE(churn.unevenness(), 1.02) << "step " << step;
    }
    EXPECT_LT(levelled, 150) << "of 300; exact levelling would move pages in nearly all";
  }
}

}  // namespace
}  // namespace kvmesh
