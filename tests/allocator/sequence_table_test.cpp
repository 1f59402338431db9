#include "allocator/sequence_table.hpp"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "kvmesh/error.hpp"

namespace kvmesh {
namespace {

TEST(SequenceTable, NeverReusesAnId) {
  SequenceTable table;
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

TEST(SequenceTable, NoticesStaleAndInventedIds) {
  SequenceTable table;
  EXPECT_EQ(table.find(SequenceId{}), nullptr);
  const SequenceId id = table.create();
  EXPECT_NE(table.find(id), nullptr);
  EXPECT_EQ(table.find(SequenceId{}), nullptr);
  EXPECT_EQ(table.find(SequenceId{id.value + 1}), nullptr);
  table.erase(id);
  EXPECT_THROW(table.at(id), UnknownSequence);
  EXPECT_THROW(table.erase(id), UnknownSequence);
  // The slot is empty and its generation even: an id made of exactly that is invalid too.
  EXPECT_EQ(table.find(SequenceId{id.value + (std::uint64_t{1} << 32)}), nullptr);
}

TEST(SequenceTable, ANewSequenceInAnOldSlotIsEmpty) {
  SequenceTable table;
  const SequenceId old = table.create();
  table.at(old).length = 7;
  table.at(old).pages.emplace_back(Rank{0}, 3);
  table.at(old).may_share = true;
  table.erase(old);
  const Sequence& fresh = table.at(table.create());
  EXPECT_EQ(table.slots(), 1);
  EXPECT_EQ(fresh.length, 0);
  EXPECT_TRUE(fresh.pages.empty());
  EXPECT_FALSE(fresh.may_share);
  EXPECT_EQ(fresh.placement.anchor, SequencePlacement::kNone);
}

TEST(SequenceTable, VisitsTheLiving) {
  SequenceTable table;
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
