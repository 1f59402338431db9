#include "comm/combine/choice/way_table.hpp"

#include <gtest/gtest.h>

namespace kvmesh {
namespace {

constexpr WayStrategy kStores{WayKind::kPeer, CombineStrategy::kAllToAll};
constexpr WayStrategy kSends{WayKind::kNccl, CombineStrategy::kAllToAll};
constexpr WayStrategy kReduces{WayKind::kNccl, CombineStrategy::kReduceScatter};

TEST(WayTable, IsALineBetweenTwoTimes) {
  WayTable table;
  table.add(kStores, Scatter::kHeads, {1000, 4});
  table.add(kStores, Scatter::kHeads, {2000, 6});
  table.add(kStores, Scatter::kHeads, {4000, 7});
  const auto at = [&](double bytes) {
    return table.microseconds(kStores, Scatter::kHeads, bytes).value();
  };
  EXPECT_DOUBLE_EQ(at(0), 4);
  EXPECT_DOUBLE_EQ(at(1000), 4);
  EXPECT_DOUBLE_EQ(at(1250), 4.5);
  EXPECT_DOUBLE_EQ(at(2000), 6);
  EXPECT_DOUBLE_EQ(at(3000), 6.5);
  EXPECT_DOUBLE_EQ(at(4000), 7);
  EXPECT_DOUBLE_EQ(at(8000), 9);
}

TEST(WayTable, DoesNotFallPastTheLastTime) {
  WayTable table;
  table.add(kStores, Scatter::kAll, {1000, 8});
  table.add(kStores, Scatter::kAll, {2000, 6});
  EXPECT_DOUBLE_EQ(table.microseconds(kStores, Scatter::kAll, 1500).value(), 7);
  EXPECT_DOUBLE_EQ(table.microseconds(kStores, Scatter::kAll, 9000).value(), 6);
}

TEST(WayTable, KnowsMeasuredWaysAlone) {
  WayTable table;
  table.add(kStores, Scatter::kHeads, {1000, 4});
  EXPECT_FALSE(table.microseconds(kStores, Scatter::kHeads, 1000)) << "one time makes no line";
  table.add(kStores, Scatter::kHeads, {2000, 5});
  EXPECT_TRUE(table.microseconds(kStores, Scatter::kHeads, 1000));
  EXPECT_TRUE(table.microseconds(kStores, Scatter::kTokens, 1000)) << "as many bytes";
  EXPECT_FALSE(table.microseconds(kStores, Scatter::kAll, 1000));
  EXPECT_FALSE(table.microseconds(kSends, Scatter::kHeads, 1000));
  EXPECT_FALSE(table.microseconds(kReduces, Scatter::kHeads, 1000));
}

// Bytes of rows of dim 127: 512 each.
constexpr CombineShape rows_of(std::int64_t bytes) { return {bytes / 512, 1, 127}; }

TEST(WayTable, TakesAnotherWayOnlyIfItIsClearlyFaster) {
  WayTable table;
  for (const double bytes : {512.0, 512.0 * 1000}) {
    table.add(kStores, Scatter::kHeads, {bytes, 8});
  }
  table.add(kSends, Scatter::kHeads, {512, 7});
  table.add(kSends, Scatter::kHeads, {512 * 1000, 6.99});
  const auto taken = [&](std::vector<WayStrategy> ways, std::int64_t rows) {
    return fastest(table, ways, Scatter::kHeads, rows_of(rows * 512));
  };
  EXPECT_EQ(taken({kStores, kSends}, 1), kStores) << "7/8 is not less than 7/8";
  EXPECT_EQ(taken({kStores, kSends}, 1000), kSends);
  EXPECT_EQ(taken({kSends, kStores}, 1000), kSends);
  EXPECT_EQ(taken({kReduces, kSends}, 1000), kReduces) << "the first has no times";
  EXPECT_EQ(taken({kStores, kReduces}, 1000), kStores);
  for (const double bytes : {512.0, 512.0 * 1000}) {
    table.add(kReduces, Scatter::kHeads, {bytes, 6.5});
  }
  EXPECT_EQ(taken({kStores, kSends, kReduces}, 1000), kReduces);
}

TEST(WayTable, KnowsTheTimeOfTheFastestWay) {
  WayTable table;
  EXPECT_FALSE(least_microseconds(table, Scatter::kHeads, rows_of(512)));
  table.add(kStores, Scatter::kHeads, {512, 4});
  table.add(kStores, Scatter::kHeads, {1024, 8});
  table.add(kSends, Scatter::kHeads, {512, 5});
  table.add(kSends, Scatter::kHeads, {1024, 6});
  EXPECT_EQ(least_microseconds(table, Scatter::kHeads, rows_of(512)), 4);
  EXPECT_EQ(least_microseconds(table, Scatter::kHeads, rows_of(1024)), 6);
  EXPECT_FALSE(least_microseconds(table, Scatter::kAll, rows_of(512)));
}

}  // namespace
}  // namespace kvmesh
