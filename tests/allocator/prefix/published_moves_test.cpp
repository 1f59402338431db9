// Published pages that move beside other operations: their hashes follow, also when they are cached
// or evicted meanwhile.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "kvmesh/allocator.hpp"

namespace kvmesh {
namespace {

constexpr int kTokensOfPage = 4;
constexpr RebalanceOptions kToLevel{.limit = 1000};

AllocatorOptions with_cache() {
  return {.ranks = 2,
          .pages_per_rank = 16,
          .page_size = kTokensOfPage,
          .placement = Placement::kPacked,
          .prefix = {.enabled = true}};
}

/// A sequence of 8 pages on rank 0 that are published.
class PublishedSideMoves : public testing::Test {
 protected:
  void SetUp() override {
    std::vector<std::int32_t> tokens(8 * kTokensOfPage, 3);
    key_.append(tokens);
    sequence_ = pages_.create();
    pages_.append(sequence_, 8 * kTokensOfPage);
    pages_.publish(sequence_, key_);
  }
  void TearDown() override { pages_.verify_integrity(); }

  void start(const RebalanceOptions& options, std::size_t moves) {
    copies_ = pages_.start_rebalance_now(options);
    ASSERT_EQ(copies_.size(), moves);
  }
  std::int64_t cached() { return pages_.cached_tokens(key_) / kTokensOfPage; }
  /// All pages of the key are found, and those that moved at their new places.
  void expect_at_destinations() {
    EXPECT_EQ(cached(), 8);
    for (const PageCopy& move : copies_)
      EXPECT_EQ(std::ranges::count_if(key_.hashes(),
                                      [&](const PageHash& hash) {
                                        return pages_.published_page(hash) == move.destination;
                                      }),
                1);
  }

  PageAllocator pages_{with_cache()};
  PrefixKey key_{pages_.prefix_rules()};
  SequenceId sequence_;
  std::vector<PageCopy> copies_;
};

TEST_F(PublishedSideMoves, HashesFollow) {
  start(kToLevel, 4);
  EXPECT_EQ(pages_.finish_moves(), 4);
  expect_at_destinations();
  pages_.erase(sequence_);
  EXPECT_EQ(cached(), 8);
  EXPECT_EQ(pages_.cached_pages(PageRank{1}), 4);
}

TEST_F(PublishedSideMoves, PagesThatAreCachedMeanwhileMoveToo) {
  start(kToLevel, 4);
  pages_.erase(sequence_);
  pages_.verify_integrity();
  EXPECT_EQ(pages_.cached_pages(), 4) << "those that do not move";
  EXPECT_EQ(pages_.free_pages(), 32 - 8);
  EXPECT_EQ(cached(), 8);
  EXPECT_EQ(pages_.finish_moves(), 4);
  expect_at_destinations();
  EXPECT_EQ(pages_.cached_pages(), 8);
  EXPECT_EQ(pages_.free_pages(), 32);
}

TEST_F(PublishedSideMoves, MatchesOfMovingPagesMoveWithThem) {
  start(kToLevel, 4);
  pages_.erase(sequence_);
  const PrefixMatch match = pages_.match_prefix(key_);
  EXPECT_EQ(match.tokens, 8 * kTokensOfPage);
  EXPECT_EQ(pages_.finish_moves(), 4);
  for (const PageCopy& move : copies_) {
    EXPECT_EQ(std::ranges::count(pages_.pages(match.pin), move.destination), 1);
    EXPECT_EQ(pages_.reference_count(move.source), 0);
  }
  pages_.release(match);
  expect_at_destinations();
}

TEST_F(PublishedSideMoves, PagesThatAreEvictedMeanwhileAreFreeAfterTheEnd) {
  start(kToLevel, 4);
  pages_.erase(sequence_);
  const SequenceId other = pages_.create();
  pages_.reserve(other, 24 * kTokensOfPage);
  EXPECT_EQ(pages_.free_pages(), 0);
  for (const PageCopy& move : copies_) {
    EXPECT_EQ(std::ranges::count(pages_.pages(other), move.source), 0);
    EXPECT_TRUE(pages_.is_moving(move.source));
  }
  pages_.verify_integrity();
  const std::int64_t left = cached();
  EXPECT_LE(left, 4);
  EXPECT_EQ(pages_.finish_moves(), left) << "what is not evicted";
  EXPECT_EQ(pages_.free_pages(), 8);
  EXPECT_EQ(cached(), left);
}

TEST_F(PublishedSideMoves, PagesArePublishedWhileTheyMove) {
  PageAllocator pages(with_cache());
  const SequenceId sequence = pages.create();
  pages.append(sequence, 8 * kTokensOfPage);
  const std::vector<PageCopy> copies = pages.start_rebalance_now(kToLevel);
  ASSERT_EQ(copies.size(), 4u);
  pages.publish(sequence, key_);
  EXPECT_EQ(pages.cached_tokens(key_), 8 * kTokensOfPage);
  EXPECT_EQ(pages.finish_moves(), 4);
  pages.erase(sequence);
  EXPECT_EQ(pages.cached_tokens(key_), 8 * kTokensOfPage);
  EXPECT_EQ(pages.cached_pages(PageRank{1}), 4);
  pages.verify_integrity();
}

TEST_F(PublishedSideMoves, ASecondCopyOfAPublishedPageIsGivenUpWhileItMoves) {
  const SequenceId twin = pages_.create();
  pages_.append(twin, 8 * kTokensOfPage);
  start(kToLevel, 8);
  pages_.publish(twin, key_);
  EXPECT_TRUE(std::ranges::equal(pages_.pages(twin), pages_.pages(sequence_)));
  pages_.verify_integrity();
  const std::int64_t moved = pages_.finish_moves();
  EXPECT_LE(moved, 8);
  EXPECT_TRUE(std::ranges::equal(pages_.pages(twin), pages_.pages(sequence_)));
  EXPECT_EQ(pages_.free_pages(), 24);
}

TEST_F(PublishedSideMoves, CachedPagesLeaveWithTheirRank) {
  pages_.erase(sequence_);
  start({.limit = 3, .leaving = PageRank{0}}, 3);
  EXPECT_EQ(pages_.cached_pages(), 5);
  EXPECT_EQ(pages_.finish_moves(), 3);
  expect_at_destinations();
  start({.limit = 100, .leaving = PageRank{0}}, 5);
  EXPECT_EQ(pages_.finish_moves(), 5);
  EXPECT_EQ(cached(), 8);
  EXPECT_EQ(pages_.cached_pages(PageRank{0}), 0);
  EXPECT_TRUE(pages_.start_resize(PageRank{0}, 0).empty());
  pages_.finish_moves();
  EXPECT_EQ(cached(), 8);
}

TEST_F(PublishedSideMoves, GivenUpTheyLeaveHashesWhereTheyWere) {
  start(kToLevel, 4);
  pages_.erase(sequence_);
  pages_.give_up_moves();
  pages_.cancel_moves();
  EXPECT_EQ(cached(), 8);
  EXPECT_EQ(pages_.cached_pages(PageRank{0}), 8);
  EXPECT_EQ(pages_.free_pages(), 32);
}

/// Returns the order in which six cached pages of rank 0 are evicted, after moves to rank 1 of at
/// most `limit` at once; 0: the drain itself moves them.
std::vector<std::ptrdiff_t> evicted_after_moves(std::int64_t limit) {
  PageAllocator pages({.ranks = 2,
                       .pages_per_rank = 8,
                       .page_size = kTokensOfPage,
                       .placement = Placement::kPacked,
                       .prefix = {.enabled = true, .eviction = Eviction::kLru}});
  std::vector<PageHash> hashes;
  for (std::int32_t i = 0; i < 6; ++i) {
    PrefixKey key(pages.prefix_rules());
    key.append(std::vector<std::int32_t>(kTokensOfPage, i));
    const SequenceId sequence = pages.create();
    pages.append(sequence, kTokensOfPage);
    pages.publish(sequence, key);
    pages.erase(sequence);
    hashes.push_back(key.hashes()[0]);
  }
  while (limit > 0 && !pages.start_rebalance_now({.limit = limit, .leaving = PageRank{0}}).empty())
    pages.finish_moves();
  pages.start_resize(PageRank{0}, 0);
  pages.finish_moves();
  EvictionCursor cursor = pages.follow_evictions();
  pages.append(pages.create(), 8 * kTokensOfPage);
  std::vector<std::ptrdiff_t> order;
  for (const PageId page : pages.read_evictions(cursor))
    order.push_back(std::ranges::find(hashes, pages.page_hash(page)) - hashes.begin());
  return order;
}

TEST(CachedSideMoves, KeepTheOrderOfEviction) {
  const std::vector<std::ptrdiff_t> want{0, 1, 2, 3, 4, 5};
  for (const std::int64_t limit : {0, 1, 2, 4, 6, 100})
    EXPECT_EQ(evicted_after_moves(limit), want) << limit << " at once";
}

}  // namespace
}  // namespace kvmesh
