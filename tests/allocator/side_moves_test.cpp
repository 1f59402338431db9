// Pages that move beside other operations.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <vector>

#include "kvmesh/allocator.hpp"

namespace kvmesh {
namespace {

constexpr int kTokens = 4;  // of a page
constexpr RebalanceOptions kAll{.limit = 1000};

AllocatorOptions two_ranks(Placement placement = Placement::kPacked) {
  return {.ranks = 2, .pages_per_rank = 16, .page_size = kTokens, .placement = placement};
}

/// Two ranks, of which the first holds one sequence of 10 tokens: two full pages, of which one is
/// too many, and one that steps write.
class SideMoves : public testing::Test {
 protected:
  void SetUp() override {
    sequence_ = pages_.create();
    pages_.append(sequence_, 10);
    copies_ = pages_.start_rebalance_now(kAll);
    ASSERT_EQ(copies_.size(), 1u);
    ASSERT_EQ(copies_[0].source, table()[0]);
    ASSERT_EQ(copies_[0].destination.rank().value, 1);
    ASSERT_EQ(copies_[0].tokens, kTokens);
  }
  void TearDown() override { pages_.verify_integrity(); }

  std::span<const PageId> table(SequenceId id) const { return pages_.pages(id); }
  std::span<const PageId> table() const { return table(sequence_); }
  PageId source() const { return copies_[0].source; }
  PageId destination() const { return copies_[0].destination; }
  void expect_pointless(std::int64_t free) {
    pages_.verify_integrity();
    EXPECT_EQ(pages_.finish_moves(), 0);
    EXPECT_EQ(pages_.free_pages(), free);
  }

  PageAllocator pages_{two_ranks()};
  SequenceId sequence_;
  std::vector<PageCopy> copies_;
};

TEST_F(SideMoves, ChangeTheTableWhenTheyAreFinished) {
  const std::uint64_t version = pages_.version(sequence_);
  ChangeCursor cursor = pages_.follow();
  pages_.append(sequence_, 1);
  EXPECT_EQ(table()[0], source());
  EXPECT_EQ(pages_.finish_moves(), 1);
  EXPECT_EQ(table()[0], destination());
  EXPECT_GT(pages_.version(sequence_), version + 1) << "more than the append's";
  EXPECT_FALSE(pages_.is_moving(source()));
  EXPECT_EQ(pages_.reference_count(source()), 0);
  const ChangeRun run = pages_.read_changes(cursor);
  ASSERT_EQ(run.changes.size(), 1u);
  EXPECT_EQ(run.changes[0].kind, ChangeKind::kReplaced);
  EXPECT_EQ(run.changes[0].new_page, destination());
}

TEST_F(SideMoves, MakePlansOfTheirSequencesStaleWhenTheyStart) {
  PageAllocator pages(two_ranks());
  const SequenceId moves = pages.create(), stays = pages.create();
  pages.append(moves, 10);
  pages.append(stays, 1);
  const std::uint64_t before = pages.version(moves), other = pages.version(stays);
  ASSERT_FALSE(pages.start_rebalance_now(kAll).empty());
  EXPECT_NE(pages.version(moves), before);
  EXPECT_EQ(pages.version(stays), other);
}

TEST_F(SideMoves, WritersOfAMovingPageGetACopy) {
  EXPECT_FALSE(pages_.is_writable(source()));
  pages_.truncate(sequence_, 3);
  const std::vector<PageCopy> copies = pages_.append(sequence_, 1);
  ASSERT_EQ(copies.size(), 1u);
  EXPECT_EQ(copies[0].source, source());
  EXPECT_EQ(copies[0].tokens, 3);
  EXPECT_NE(table()[0], source());
  expect_pointless(31);
}

TEST_F(SideMoves, MakeWritableCopiesMovingPagesAlone) {
  const std::vector<PageCopy> copies = pages_.make_writable(sequence_, 0, 8);
  ASSERT_EQ(copies.size(), 1u);
  EXPECT_EQ(copies[0].source, source());
  EXPECT_TRUE(pages_.is_writable(table()[0]));
  expect_pointless(29);
}

TEST_F(SideMoves, APageThatIsFreedIsNotHandedOutBeforeTheEnd) {
  pages_.erase(sequence_);
  EXPECT_EQ(pages_.free_pages(), 30) << "all but the two of the move";
  const SequenceId other = pages_.create();
  pages_.reserve(other, 30 * kTokens);
  EXPECT_EQ(std::ranges::count(table(other), source()), 0);
  EXPECT_EQ(std::ranges::count(table(other), destination()), 0);
  EXPECT_FALSE(pages_.try_reserve(other, 31 * kTokens).has_value());
  expect_pointless(2);
}

TEST_F(SideMoves, ForksMoveWithTheSequence) {
  const SequenceId fork = pages_.fork(sequence_);
  EXPECT_EQ(pages_.finish_moves(), 1);
  EXPECT_EQ(table(fork)[0], destination());
  EXPECT_EQ(table()[0], destination());
  EXPECT_EQ(pages_.reference_count(destination()), 2);
}

TEST_F(SideMoves, AForkAloneKeepsTheMoveOfUse) {
  const SequenceId fork = pages_.fork(sequence_);
  pages_.erase(sequence_);
  EXPECT_EQ(pages_.finish_moves(), 1);
  EXPECT_EQ(table(fork)[0], destination());
}

TEST_F(SideMoves, CancelledTheyLeaveAllAsItWas) {
  pages_.cancel_moves();
  EXPECT_EQ(table()[0], source());
  EXPECT_TRUE(pages_.is_writable(source()));
  EXPECT_EQ(pages_.free_pages(), 29);
  EXPECT_THROW(pages_.finish_moves(), InvalidArgument);
  EXPECT_THROW(pages_.cancel_moves(), InvalidArgument);
}

TEST_F(SideMoves, GivenUpTheyProvideTheirDestinationsAndKeepTheSources) {
  const SequenceId other = pages_.create();
  const AppendRequest all{other, 29 * kTokens};
  EXPECT_FALSE(pages_.can_append({&all, 1}).has_value());
  pages_.give_up_moves();
  EXPECT_TRUE(pages_.can_append({&all, 1}).has_value());
  pages_.append(other, 29 * kTokens);
  EXPECT_EQ(std::ranges::count(table(other), destination()), 1);
  EXPECT_TRUE(pages_.is_moving(source()));
  pages_.erase(sequence_);
  EXPECT_EQ(pages_.free_pages(), 2) << "its other pages";
  EXPECT_THROW(pages_.finish_moves(), InvalidArgument);
  EXPECT_THROW(pages_.give_up_moves(), InvalidArgument);
  pages_.verify_integrity();
  pages_.cancel_moves();
  EXPECT_EQ(pages_.free_pages(), 3);
}

TEST_F(SideMoves, OtherMovesWaitForTheirEnd) {
  EXPECT_THROW(pages_.start_rebalance(1), InvalidArgument);
  EXPECT_THROW(pages_.start_rebalance_now(kAll), InvalidArgument);
  EXPECT_THROW(pages_.start_resize(PageRank{0}, 3), InvalidArgument);
  pages_.finish_moves();
  EXPECT_TRUE(pages_.start_rebalance_now(kAll).empty()) << "it is level";
  EXPECT_THROW(pages_.finish_moves(), InvalidArgument);
}

TEST(SideMovesOfPages, LeavePagesThatAreOnlyReserved) {
  PageAllocator pages(two_ranks());
  const SequenceId sequence = pages.create();
  pages.reserve(sequence, 6 * kTokens);
  EXPECT_TRUE(pages.start_rebalance_now(kAll).empty());
  pages.append(sequence, 5);
  EXPECT_EQ(pages.start_rebalance_now(kAll).size(), 1u) << "one is full";
}

TEST(SideMovesOfPages, LeaveStates) {
  AllocatorOptions options = two_ranks();
  options.page_size = 1 << 20;
  options.state_interval = 4;
  PageAllocator pages(options);
  for (int i = 0; i < 6; ++i) pages.append(pages.create(), 8);
  EXPECT_EQ(pages.free_pages(PageRank{0}), 10);
  EXPECT_TRUE(pages.start_rebalance_now(kAll).empty());
}

TEST(SideMovesOfPages, KeepALimitForAllThatAreOnTheirWay) {
  PageAllocator pages(two_ranks());
  const SequenceId sequence = pages.create();
  pages.append(sequence, 16 * kTokens);
  std::int64_t moved = 0;
  for (int i = 0; i < 4; ++i) {
    const auto copies = pages.start_rebalance_now({.limit = 3});
    EXPECT_EQ(std::ssize(copies), std::min<std::int64_t>(3, 8 - moved));
    if (!copies.empty()) moved += pages.finish_moves();
  }
  EXPECT_EQ(moved, 8);
  EXPECT_EQ(pages.free_pages(PageRank{0}), pages.free_pages(PageRank{1}));
}

/// A short sequence moves as a whole: what it writes when the move starts follows when it is full,
/// and no other page moves in its place meanwhile.
TEST(SideMovesOfPages, TheLastPageOfAShortSequenceFollowsIt) {
  AllocatorOptions options = two_ranks(Placement::kBalanced);
  options.pool_pages = {16, 0};
  PageAllocator pages(options);
  std::vector<SequenceId> sequences;
  for (const int tokens : {9, 9, 9, 9}) {
    sequences.push_back(pages.create());
    pages.append(sequences.back(), tokens);
  }
  ASSERT_TRUE(pages.start_resize(PageRank{1}, 16).empty());
  pages.finish_moves();
  EXPECT_EQ(pages.start_rebalance_now(kAll).size(), 4u) << "the full pages of two sequences";
  EXPECT_EQ(pages.finish_moves(), 4);
  EXPECT_TRUE(pages.start_rebalance_now(kAll).empty());
  for (const SequenceId sequence : sequences) pages.append(sequence, 4);
  EXPECT_EQ(pages.start_rebalance_now(kAll).size(), 2u);
  EXPECT_EQ(pages.finish_moves(), 2);
  for (const SequenceId sequence : sequences) {
    const auto table = pages.pages(sequence);
    EXPECT_TRUE(std::ranges::all_of(
        table, [&](PageId page) { return page.rank() == table.front().rank(); }));
  }
  EXPECT_TRUE(pages.start_rebalance_now(kAll).empty());
}

/// Beams share the page that the first of them writes, and it is at home for none of them.
TEST(SideMovesOfPages, ALastPageThatForksShareMovesNothingInItsStead) {
  AllocatorOptions options = two_ranks(Placement::kBalanced);
  options.pool_pages = {16, 0};
  PageAllocator pages(options);
  const SequenceId beam = pages.create(), other = pages.create();
  pages.append(beam, 9);
  pages.append(other, 9);
  ASSERT_TRUE(pages.start_resize(PageRank{1}, 16).empty());
  pages.finish_moves();
  ASSERT_EQ(pages.start_rebalance_now(kAll).size(), 2u);
  ASSERT_EQ(pages.finish_moves(), 2);
  for (int i = 0; i < 6; ++i) pages.fork(beam);
  for (int i = 0; i < 6; ++i) pages.fork(other);
  EXPECT_LE(pages.start_rebalance_now(kAll).size(), 1u);
}

TEST(SideMovesOfPages, EmptyARankThatIsLeaving) {
  for (const Placement placement :
       {Placement::kBalanced, Placement::kStriped, Placement::kPacked}) {
    AllocatorOptions options = two_ranks(placement);
    options.home_threshold_tokens = 8;
    PageAllocator pages(options);
    const SequenceId sequence = pages.create();
    pages.append(sequence, 6 * kTokens + 1);
    const RebalanceOptions leaving{.limit = 2, .leaving = PageRank{0}};
    for (int i = 0; i < 20; ++i) {
      if (!pages.start_rebalance_now(leaving).empty()) pages.finish_moves();
      pages.append(sequence, 1);
      pages.verify_integrity();
    }
    EXPECT_EQ(pages.free_pages(PageRank{0}), 16) << name(placement);
    pages.append(pages.create(), 1);
    EXPECT_EQ(pages.free_pages(PageRank{0}), 16) << "new sequences are elsewhere";
    EXPECT_TRUE(pages.start_resize(PageRank{0}, 0).empty()) << "nothing is left to drain";
    pages.finish_moves();
    pages.start_resize(PageRank{0}, 16);
    pages.finish_moves();
    for (int i = 0; i < 4; ++i) pages.append(pages.create(), 9);
    EXPECT_LT(pages.free_pages(PageRank{0}), 16) << "it is back in use";
  }
}

TEST(SideMovesOfPages, ALeavingRankProvidesTheLastPages) {
  PageAllocator pages(two_ranks());
  const SequenceId sequence = pages.create();
  EXPECT_TRUE(pages.start_rebalance_now({.limit = 9, .leaving = PageRank{0}}).empty());
  pages.append(sequence, 20 * kTokens);
  EXPECT_EQ(pages.free_pages(PageRank{1}), 0);
  EXPECT_EQ(pages.free_pages(PageRank{0}), 12);
  EXPECT_TRUE(pages.start_rebalance_now({.limit = 9, .leaving = PageRank{0}}).empty())
      << "there is no room";
}

/// Balanced sequences of random lengths, and forks; in half of the cases as many as leave about one
/// rank's pages free.
PageAllocator random_pages(std::mt19937& random, std::vector<SequenceId>& sequences) {
  const auto draw = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  PageAllocator pages({.ranks = 2 + draw(2),
                       .pages_per_rank = 8 + draw(40),
                       .page_size = kTokens,
                       .placement = Placement::kBalanced,
                       .home_threshold_tokens = kTokens * (1 + draw(12))});
  const auto append = [&](SequenceId sequence, std::int64_t tokens) {
    const AppendRequest request{sequence, tokens};
    static_cast<void>(pages.try_append({&request, 1}));
  };
  const bool fills = draw(2) == 0;
  for (int operations = fills ? 300 : 1 + draw(40); operations > 0; --operations) {
    if (fills && pages.free_pages() <= pages.options().pages_per_rank + 1) break;
    const int kind = draw(8);
    if (kind < 4 || sequences.empty()) {
      sequences.push_back(pages.create());
      append(sequences.back(), 1 + draw(30));
    } else if (kind == 4) {
      sequences.push_back(pages.fork(sequences[random() % sequences.size()]));
    } else if (kind == 5) {
      const std::size_t at = random() % sequences.size();
      pages.erase(sequences[at]);
      sequences.erase(sequences.begin() + static_cast<std::ptrdiff_t>(at));
    } else {
      append(sequences[random() % sequences.size()], 1 + draw(20));
    }
  }
  return pages;
}

/// The pages of the rank that are full of tokens, once for each sequence that has them.
std::int64_t full_pages(const PageAllocator& pages, const std::vector<SequenceId>& sequences,
                        PageRank rank) {
  std::int64_t count = 0;
  for (const SequenceId sequence : sequences)
    for (std::int64_t at = 0; at < pages.length(sequence) / kTokens; ++at)
      count += pages.pages(sequence)[static_cast<std::size_t>(at)].rank() == rank ? 1 : 0;
  return count;
}

// No page moves to and fro, and no full page stays on a rank that is leaving if there is room.
TEST(SideMovesOfBalancedSequences, ComeToAnEnd) {
  for (unsigned seed = 1; seed <= 2000; ++seed) {
    std::mt19937 random(seed);
    std::vector<SequenceId> sequences;
    PageAllocator pages = random_pages(random, sequences);
    const RebalanceOptions options{.limit = 1 + static_cast<std::int64_t>(random() % 6),
                                   .leaving = PageRank{random() % 3 == 0 ? 0 : -1}};
    int rounds = 0;
    for (; rounds < 200 && !pages.start_rebalance_now(options).empty(); ++rounds)
      pages.finish_moves();
    ASSERT_LT(rounds, 200) << "seed " << seed;
    pages.verify_integrity();
    if (options.leaving.value < 0) continue;
    if (pages.free_pages() > pages.free_pages(options.leaving)) {
      ASSERT_EQ(full_pages(pages, sequences, options.leaving), 0) << "seed " << seed;
    }
  }
}

}  // namespace
}  // namespace kvmesh
