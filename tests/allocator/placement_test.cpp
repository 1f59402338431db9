#include "allocator/placement.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "kvmesh/allocator.hpp"
#include "tests/allocator/seed.hpp"

namespace kvmesh {
namespace {

using Counts = std::vector<std::int64_t>;

std::vector<int> ranks_of(const PageAllocator& allocator, SequenceId id) {
  std::vector<int> ranks;
  for (PageId page : allocator.pages(id)) ranks.push_back(page.rank().value);
  return ranks;
}

Counts free_of(const PageAllocator& allocator) {
  Counts free;
  for (int rank = 0; rank < allocator.options().ranks; ++rank)
    free.push_back(allocator.free_pages(PageRank{rank}));
  return free;
}

/// The rule of each placement, in its plainest form: true if `rank` is right for the next page.
class Rule {
 public:
  explicit Rule(const AllocatorOptions& options) : options_(options) {}

  void check_next(SequenceId id, std::vector<int>& table, Counts& free, int rank) {
    const auto logical = static_cast<std::int64_t>(table.size());
    ASSERT_GT(free[static_cast<std::size_t>(rank)], 0);
    if (table.empty()) home_.erase(id);
    switch (options_.placement) {
      case Placement::kPacked:
        for (int lower = 0; lower < rank; ++lower)
          ASSERT_EQ(free[static_cast<std::size_t>(lower)], 0);
        break;
      case Placement::kStriped:
        check_striped(id, logical, free, rank);
        break;
      case Placement::kBalanced:
        if (logical * options_.page_size < options_.home_threshold_tokens) {
          check_home(id, free, rank);
        } else {
          check_spread(table, free, rank);
        }
    }
    table.push_back(rank);
    --free[static_cast<std::size_t>(rank)];
  }

 private:
  void check_striped(SequenceId id, std::int64_t logical, const Counts& free, int rank) {
    if (!home_.contains(id)) home_[id] = static_cast<int>(starts_++ % options_.ranks);
    std::int64_t wanted = (home_[id] + logical) % options_.ranks;
    while (free[static_cast<std::size_t>(wanted)] == 0) wanted = (wanted + 1) % options_.ranks;
    ASSERT_EQ(rank, wanted);
  }

  void check_home(SequenceId id, const Counts& free, int rank) {
    const auto home = home_.find(id);
    if (home != home_.end() && free[static_cast<std::size_t>(home->second)] > 0) {
      ASSERT_EQ(rank, home->second);
      return;
    }
    ASSERT_EQ(free[static_cast<std::size_t>(rank)], *std::max_element(free.begin(), free.end()));
    home_[id] = rank;
  }

  void check_spread(const std::vector<int>& table, const Counts& free, int rank) {
    // Fewest held first, then most free: no rank with a free page may be better.
    const auto held = [&](int r) { return std::count(table.begin(), table.end(), r); };
    for (int other = 0; other < options_.ranks; ++other) {
      if (free[static_cast<std::size_t>(other)] == 0) continue;
      ASSERT_LE(held(rank), held(other));
      if (held(rank) == held(other)) {
        ASSERT_GE(free[static_cast<std::size_t>(rank)], free[static_cast<std::size_t>(other)]);
      }
    }
  }

  AllocatorOptions options_;
  std::map<SequenceId, int> home_;
  std::int64_t starts_ = 0;
};

/// An allocator whose every page is checked as it is handed out.
class Checked {
 public:
  explicit Checked(const AllocatorOptions& options) : allocator(options), rule_(options) {}

  void append(SequenceId id, std::int64_t tokens) {
    std::vector<int> table = ranks_of(allocator, id);
    Counts free = free_of(allocator);
    const AppendRequest request{id, tokens};
    if (!allocator.try_append({&request, 1})) return;
    const std::vector<int> now = ranks_of(allocator, id);
    for (std::size_t logical = table.size(); logical < now.size(); ++logical) {
      ranks_used.insert(now[logical]);
      rule_.check_next(id, table, free, now[logical]);
      if (testing::Test::HasFatalFailure()) return;
    }
    ASSERT_EQ(free, free_of(allocator));
    allocator.verify_integrity();
  }

  PageAllocator allocator;
  std::set<int> ranks_used;

 private:
  Rule rule_;
};

/// Random sequences that grow, shrink and end, until at last one takes all that is free.
void check_placement(const AllocatorOptions& options, std::mt19937_64& random) {
  Checked checked(options);
  PageAllocator& allocator = checked.allocator;
  std::vector<SequenceId> ids;
  for (int step = 0; step < 400; ++step) {
    if (ids.size() < 2 || random() % 8 == 0) ids.push_back(allocator.create());
    const std::size_t pick = random() % ids.size();
    if (random() % 8 == 0) {
      allocator.erase(ids[pick]);
      ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(pick));
    } else if (random() % 4 == 0) {
      allocator.truncate(ids[pick], test::uniform(random, 0, allocator.length(ids[pick])));
    } else {
      checked.append(ids[pick], test::uniform(random, 0, 6 * options.page_size));
      if (testing::Test::HasFatalFailure()) return;
    }
  }
  checked.append(allocator.create(), allocator.free_pages() * options.page_size);
  EXPECT_EQ(allocator.free_pages(), 0);
  EXPECT_EQ(checked.ranks_used.size(), static_cast<std::size_t>(options.ranks));
}

TEST(Placement, FollowsItsRule) {
  SCOPED_TRACE(test::seed_note());
  std::mt19937_64 random(test::seed());
  for (Placement placement : {Placement::kBalanced, Placement::kStriped, Placement::kPacked})
    for (int ranks : {1, 2, 3, 5, 8})
      for (int page_size : {1, 4, 16}) {
        const AllocatorOptions options{
            .ranks = ranks,
            .pages_per_rank = test::uniform(random, 3, 12),
            .page_size = page_size,
            .placement = placement,
            .home_threshold_tokens = test::uniform(random, 0, 5 * page_size)};
        SCOPED_TRACE(testing::Message()
                     << name(placement) << ", ranks " << ranks << ", pages per rank "
                     << options.pages_per_rank << ", page size " << page_size << ", threshold "
                     << options.home_threshold_tokens);
        check_placement(options, random);
        if (testing::Test::HasFailure()) return;
      }
}

TEST(Placement, TinySequencesThatComeAndGoSpread) {
  for (Placement placement : {Placement::kBalanced, Placement::kStriped}) {
    PageAllocator allocator({.ranks = 4, .pages_per_rank = 10, .placement = placement});
    std::vector<int> pages_on(4, 0);
    for (int i = 0; i < 40; ++i) {
      const SequenceId id = allocator.create();
      allocator.append(id, 3);
      ++pages_on[static_cast<std::size_t>(ranks_of(allocator, id)[0])];
      allocator.erase(id);
    }
    EXPECT_EQ(pages_on, std::vector<int>(4, 10)) << name(placement);
  }
}

TEST(Placement, LongSequencesEndEvenlySpread) {
  PageAllocator allocator(
      {.ranks = 4, .pages_per_rank = 100, .page_size = 16, .home_threshold_tokens = 320});
  const SequenceId id = allocator.create();
  allocator.append(id, 320);
  const std::vector<int> at_home = ranks_of(allocator, id);
  EXPECT_EQ(at_home, std::vector<int>(20, at_home[0]));
  for (int i = 0; i < 1280 - 320; ++i) allocator.append(id, 1);
  const std::vector<int> ranks = ranks_of(allocator, id);
  for (int rank = 0; rank < 4; ++rank) EXPECT_EQ(std::count(ranks.begin(), ranks.end(), rank), 20);
}

TEST(Placement, CopyStaysOnItsRankIfThereIsRoom) {
  for (Placement placement : {Placement::kBalanced, Placement::kStriped, Placement::kPacked}) {
    PageAllocator allocator({.ranks = 3, .pages_per_rank = 2, .placement = placement});
    const SequenceId parent = allocator.create();
    allocator.append(parent, 5);
    const PageRank rank = allocator.pages(parent)[0].rank();
    const SequenceId near = allocator.fork(parent);
    const SequenceId far = allocator.fork(parent);
    const auto first = allocator.append(near, 1);
    ASSERT_EQ(first.size(), 1u);
    EXPECT_EQ(first[0].destination.rank(), rank);
    const auto second = allocator.append(far, 1);  // that rank is full now
    ASSERT_EQ(second.size(), 1u);
    EXPECT_NE(second[0].destination.rank(), rank);
    allocator.verify_integrity();
  }
}

TEST(Placement, AForkGrowsAtItsParentsHome) {
  PageAllocator allocator({.ranks = 4, .pages_per_rank = 8, .page_size = 4});
  const SequenceId parent = allocator.create();
  allocator.append(parent, 4);
  const SequenceId child = allocator.fork(parent);
  allocator.append(child, 4);
  EXPECT_EQ(allocator.pages(child)[1].rank(), allocator.pages(parent)[0].rank());
}

/// The later pages of a stripe count from its start, also when its first page has moved.
TEST(Placement, AStripeGoesOnWhereItsFirstPageHasLeft) {
  PageAllocator allocator(
      {.ranks = 3, .pages_per_rank = 8, .page_size = 4, .placement = Placement::kStriped});
  const SequenceId id = allocator.create();
  allocator.append(id, 4);
  ASSERT_EQ(ranks_of(allocator, id), std::vector<int>{0});
  allocator.start_resize(PageRank{0}, 0);
  ASSERT_EQ(allocator.finish_moves(), 1);
  allocator.start_resize(PageRank{0}, 8);
  allocator.finish_moves();
  allocator.append(id, 12);
  const std::vector<int> ranks = ranks_of(allocator, id);
  EXPECT_EQ(std::vector<int>(ranks.begin() + 1, ranks.end()), (std::vector<int>{1, 2, 0}));
}

/// The same beside steps, where a sequence of one page moves as a whole.
TEST(Placement, AStripeGoesOnWhereItsOnlyPageHasLeft) {
  PageAllocator allocator(
      {.ranks = 2, .pages_per_rank = 16, .page_size = 4, .placement = Placement::kStriped});
  std::vector<SequenceId> ids;
  for (int i = 0; i < 8; ++i) {
    const SequenceId id = allocator.create();
    allocator.append(id, 4);
    ranks_of(allocator, id)[0] == 0 ? ids.push_back(id) : allocator.erase(id);
  }
  ASSERT_EQ(allocator.start_rebalance_now({.limit = 8}).size(), 2u);
  ASSERT_EQ(allocator.finish_moves(), 2);
  for (const SequenceId id : ids) {
    allocator.append(id, 4);
    EXPECT_EQ(ranks_of(allocator, id)[1], 1);
  }
}

/// A rank that was drained takes pages again when it has come back.
TEST(Placement, ARankThatHasLeftIsUsedAgain) {
  PageAllocator allocator(
      {.ranks = 2, .pages_per_rank = 8, .page_size = 4, .placement = Placement::kPacked});
  EXPECT_TRUE(allocator.start_rebalance_now({.limit = 8, .leaving = PageRank{0}}).empty());
  const SequenceId meanwhile = allocator.create();
  allocator.append(meanwhile, 4);
  EXPECT_EQ(ranks_of(allocator, meanwhile), std::vector<int>{1});
  for (const std::int64_t pages : {0, 8}) {
    allocator.start_resize(PageRank{0}, pages);
    allocator.finish_moves();
  }
  const SequenceId later = allocator.create();
  allocator.append(later, 4);
  EXPECT_EQ(ranks_of(allocator, later), std::vector<int>{0});
}

TEST(Placement, ReachesTheLargestMesh) {
  PageAllocator allocator({.ranks = PageId::kMaxRanks,
                           .pages_per_rank = 2,
                           .page_size = 1,
                           .home_threshold_tokens = 1});
  const SequenceId id = allocator.create();
  allocator.append(id, 2 * PageId::kMaxRanks);
  EXPECT_EQ(allocator.free_pages(), 0);
  allocator.verify_integrity();
  EXPECT_EQ(allocator.pages(id).back().valid(), true);
}

TEST(Placement, HasANameBothWays) {
  for (Placement placement : {Placement::kBalanced, Placement::kStriped, Placement::kPacked})
    EXPECT_EQ(placement_from(name(placement)), placement);
  EXPECT_THROW(placement_from("round-robin"), InvalidArgument);
}

}  // namespace
}  // namespace kvmesh
