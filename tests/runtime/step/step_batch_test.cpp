#include "runtime/step/step_batch.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace kvmesh::test {
namespace {

/// The pages of a sequence of which two ranks hold these numbers of pages.
LocalSequence held_by(std::int32_t first, std::int32_t second) {
  LocalSequence pages;
  pages.held = {first, second};
  return pages;
}

SequenceStep queries(std::int64_t count, LocalSequence& pages) {
  return {.sequence = SequenceId(0, 0, 0),
          .size = {.queries = count, .length = 8, .appended = 1},
          .pages = &pages};
}

TEST(StepBatch, CountsTheTokensOfItsSequences) {
  LocalSequence pages = held_by(1, 0);
  StepBatch batch;
  batch.restart({});
  batch.add(queries(2, pages));
  batch.add(queries(3, pages));
  EXPECT_EQ(batch.query_tokens(), 5);
  EXPECT_EQ(batch.append_tokens(), 2);
  batch.restart({});
  EXPECT_EQ(batch.query_tokens(), 0);
  EXPECT_TRUE(batch.sequences().empty());
}

TEST(StepBatch, HasTheParticipationOfItsNewestSequences) {
  const Membership members(2);
  LocalSequence first = held_by(1, 0), second = held_by(0, 1), both = held_by(1, 1);
  StepBatch batch;
  batch.set_members(members);
  batch.add(queries(1, first));
  EXPECT_FALSE(batch.has_participation()) << "computed at the first call";
  EXPECT_TRUE(batch.participation().has(0, Rank{0}));
  EXPECT_FALSE(batch.participation().has(0, Rank{1}));
  EXPECT_TRUE(batch.has_participation());

  batch.add(queries(1, both));
  ASSERT_EQ(batch.participation().tokens(), 2);
  EXPECT_TRUE(batch.participation().has(1, Rank{1}));

  batch.restart({});
  EXPECT_FALSE(batch.has_participation());
  batch.add(queries(1, second));
  ASSERT_EQ(batch.participation().tokens(), 1);
  EXPECT_FALSE(batch.participation().has(0, Rank{0}));
  EXPECT_EQ(batch.participation().owner(0), Rank{1});
}

// A row without keys may still have a sink, which its first rank counts.
TEST(StepBatch, TheFirstRankTakesPartWithoutPages) {
  const Membership members(2);
  LocalSequence none = held_by(0, 0), second = held_by(0, 1);
  StepBatch batch;
  batch.set_members(members);
  batch.add(queries(1, none));
  batch.add(queries(1, second));
  const PageRank first = none.first_rank();
  EXPECT_TRUE(batch.participation().has(0, members.holder(first)));
  EXPECT_FALSE(batch.participation().has(0, members.holder(PageRank{1 - first.value})));
  EXPECT_FALSE(batch.participation().has(1, Rank{0}));
  EXPECT_TRUE(batch.participation().has(1, Rank{1}));
}

// The same pages, held by the other rank after a change of members.
TEST(StepBatch, HasTheParticipationOfItsNewestMembers) {
  const Membership before(2), after(1, {Rank{1}, Rank{0}});
  LocalSequence first = held_by(1, 0);
  StepBatch batch;
  batch.set_members(before);
  batch.add(queries(1, first));
  EXPECT_EQ(batch.participation().owner(0), Rank{0});
  batch.set_members(after);
  EXPECT_EQ(batch.participation().owner(0), Rank{1});
}

/// An allocator of pages of 4 tokens with one sequence of `length`, on two ranks in turn.
struct OneSequence {
  explicit OneSequence(std::int64_t length)
      : allocator({.ranks = 2,
                   .pages_per_rank = 8,
                   .page_size = 4,
                   .placement = Placement::kStriped,
                   .window = 4}) {
    allocator.append(sequence, length);
    cache.page_size = 4;
    cache.q_heads = 2;
  }
  std::vector<SequenceSize> check(const BatchEntry& entry, const StepRules& rules = {}) {
    return check_step(allocator, cache, {&entry, 1}, rules);
  }

  PageAllocator allocator;
  SequenceId sequence = allocator.create();
  CacheOptions cache;
};

// What a window gives up follows from the earliest query, wherever it is in the batch.
TEST(CheckStep, TheFirstQueryIsTheEarliest) {
  OneSequence one(6);
  const std::vector<std::int64_t> positions{5, 3, 7};
  EXPECT_EQ(one.check({one.sequence, 2, 3}, {.q_positions = positions})[0].first_query, 3);
  EXPECT_EQ(one.check({one.sequence, 2, 3})[0].first_query, 5);
}

TEST(CheckStep, TakesMoreQueriesThanTokensAtGivenPositionsAlone) {
  OneSequence one(2);
  const std::vector<std::int64_t> positions{0, 1, 1};
  EXPECT_EQ(one.check({one.sequence, 0, 3}, {.q_positions = positions})[0].queries, 3);
  EXPECT_THROW(one.check({one.sequence, 0, 3}), InvalidArgument);
}

TEST(CheckStep, RejectsPositionsThatKernelsCannotCount) {
  EXPECT_NO_THROW(check_positions(std::vector<std::int64_t>{0, kMaxLength - 1}, 2));
  for (const std::int64_t position : {std::int64_t{-1}, kMaxLength})
    EXPECT_THROW(check_positions(std::vector<std::int64_t>{position}, 1), InvalidArgument);
  EXPECT_THROW(check_positions(std::vector<std::int64_t>{0}, 2), InvalidArgument);
}

// New keys have a tensor of their own, which has room for the limit's tokens.
TEST(CheckStep, LimitsCountAppendedTokensAndQueries) {
  const StepLimits limits{.sequences = 1, .query_tokens = 4};
  const SequenceId sequence(0, 0, 0);
  for (const BatchEntry& good : {BatchEntry{sequence, 4, 1}, BatchEntry{sequence, 0, 4}})
    EXPECT_NO_THROW(check_limits(limits, {&good, 1}));
  for (const BatchEntry& bad : {BatchEntry{sequence, 5, 1}, BatchEntry{sequence, 0, 5}})
    EXPECT_THROW(check_limits(limits, {&bad, 1}), InvalidArgument);
}

TEST(CheckStep, RejectsBlockMasksOfOtherHeads) {
  const SequenceSize size{.queries = 1, .length = 4, .appended = 1};
  for (const std::int64_t heads : {1, 2, 3}) {
    const BlockMaskShape shape{
        .heads = heads, .q_len = 1, .kv_len = 4, .q_block = 1, .kv_block = 4};
    const BlockMask mask = BlockMask::create({}, shape);
    if (heads == 3) {
      EXPECT_THROW(check_block_mask(4, 2, {&size, 1}, mask), InvalidArgument);
    } else {
      EXPECT_NO_THROW(check_block_mask(4, 2, {&size, 1}, mask)) << heads;
    }
  }
}

// A step without new tokens slides no window. One with some keeps what queries at the positions of
// all of them see, although it has fewer.
TEST(OwnerOf, IsThatOfThePagesThatTheStepKeeps) {
  OneSequence one(8);
  const auto owner = [&](std::int64_t append, std::int64_t queries) {
    return owner_of(one.allocator, {one.sequence, append, queries}, 4);
  };
  EXPECT_EQ(owner(0, 1), PageRank{0});
  EXPECT_EQ(owner(1, 1), PageRank{1}) << "sees from position 5";
  EXPECT_EQ(owner(8, 1), PageRank{1}) << "a later query may see from position 5";
}

}  // namespace
}  // namespace kvmesh::test
