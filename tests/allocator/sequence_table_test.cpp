#include "allocator/sequence_table.hpp"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "kvmesh/error.hpp"

namespace kvmesh {
namespace {

TEST(SequenceTable, NeverReusesAnId) {
  SequenceTable table(7);
  std::set<SequenceId> seen;
  for (int round = 0; round < 100; ++round) {
    const SequenceId a = table.create();
    const SequenceId b = table.create();
    EXPECT_TRUE(seen.insert(a).second);
    EXPECT_TRUE(seen.insert(b).second);
    table.erase(round % 2 == 0 ? a : b);
    table.erase(round % 2 == 0 ? b : a);
  }
  EXPECT_EQ(table.slots(), 2) << "slots are reused, ids are not";
  for (SequenceId id : seen) EXPECT_EQ(table.find(id), nullptr);
}

TEST(SequenceTable, RejectsStaleAndInventedIds) {
  SequenceTable table(7);
  EXPECT_EQ(table.find(SequenceId{}), nullptr);
  const SequenceId id = table.create();
  EXPECT_NE(table.find(id), nullptr);
  EXPECT_EQ(table.find(SequenceId{}), nullptr);
  EXPECT_EQ(table.find(SequenceId{id.value + 1}), nullptr);
  table.erase(id);
  EXPECT_THROW(table.at(id), UnknownSequence);
  EXPECT_THROW(table.erase(id), UnknownSequence);
  // The slot is empty and its generation even: an id made of exactly that is invalid too.
  EXPECT_EQ(table.find(SequenceId(7, id.generation() + 1, id.slot())), nullptr);
}

TEST(SequenceTable, ANewSequenceInAnOldSlotIsEmpty) {
  SequenceTable table(7);
  const SequenceId old = table.create();
  table.at(old).length = 7;
  table.at(old).pages.emplace_back(PageRank{0}, 3);
  table.at(old).may_share = true;
  table.erase(old);
  const Sequence& fresh = table.at(table.create());
  EXPECT_EQ(table.slots(), 1);
  EXPECT_EQ(fresh.length, 0);
  EXPECT_TRUE(fresh.pages.empty());
  EXPECT_FALSE(fresh.may_share);
  EXPECT_EQ(fresh.placement.anchor, SequencePlacement::kNone);
}

TEST(SequenceTable, RejectsIdsOfAnotherSpace) {
  SequenceTable here(7), there(8);
  const SequenceId mine = here.create(), other = there.create();
  EXPECT_EQ(mine.slot(), other.slot());
  EXPECT_EQ(mine.generation(), other.generation());
  EXPECT_EQ(here.find(other), nullptr);
  EXPECT_EQ(there.find(mine), nullptr);
  EXPECT_THROW(here.at(other), UnknownSequence);
  EXPECT_THROW(here.erase(other), UnknownSequence);
  EXPECT_NE(here.find(mine), nullptr);
}

// The generations of a slot are used up after 2^23 lives.
TEST(SequenceTable, RetiresASlotRatherThanReuseAnId) {
  SequenceTable table(7);
  const SequenceId first = table.create();
  table.erase(first);
  for (int life = 1; life < 1 << 23; ++life) table.erase(table.create());
  EXPECT_EQ(table.retired_slots(), 1);
  const SequenceId next = table.create();
  EXPECT_NE(next.slot(), first.slot());
  EXPECT_EQ(table.find(first), nullptr);
}

TEST(SequenceTable, VisitsExistingSequences) {
  SequenceTable table(7);
  std::vector<SequenceId> ids;
  for (int i = 0; i < 5; ++i) ids.push_back(table.create());
  table.erase(ids[1]);
  table.erase(ids[4]);
  std::vector<SequenceId> visited;
  table.for_each([&](SequenceId id, const Sequence&) { visited.push_back(id); });
  EXPECT_EQ(visited, (std::vector<SequenceId>{ids[0], ids[2], ids[3]}));
  EXPECT_EQ(table.size(), 3);
  EXPECT_EQ(table.count_empty_slots(), 2);
}

}  // namespace
}  // namespace kvmesh
