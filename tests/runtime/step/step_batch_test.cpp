#include "runtime/step/step_batch.hpp"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace kvmesh::test
