#include "comm/combine/way_strategies.hpp"

#include <gtest/gtest.h>

#include "kvmesh/error.hpp"

namespace kvmesh {
namespace {

TEST(WayStrategies, RejectsOneThatAWayDoesNotHave) {
  for (const WayKind way : {WayKind::kHost, WayKind::kStaged}) {
    EXPECT_FALSE(supports(way, CombineStrategy::kAllReduce));
    EXPECT_THROW(resolve_strategy(way, {1, 8, 128}, {.strategy = CombineStrategy::kAllReduce}, 4),
                 InvalidArgument);
  }
}

TEST(WayStrategies, SendsLargeRowsToAllByOwners) {
  EXPECT_FALSE(
      goes_by_owners(CombineStrategy::kAllToAll, {1, 21, 129}, 4));  // 21 * 130 * 4 * 3 bytes
  EXPECT_TRUE(goes_by_owners(CombineStrategy::kAllToAll, {1, 22, 129}, 4));
  EXPECT_TRUE(goes_by_owners(CombineStrategy::kReduceScatter, {1, 1, 1}, 2));
  // Two ranks send as many bytes in one step: only the merging is shared.
  EXPECT_FALSE(goes_by_owners(CombineStrategy::kAllToAll, {32, 32, 127}, 2));  // 512 KiB
  EXPECT_TRUE(goes_by_owners(CombineStrategy::kAllToAll, {32, 32, 128}, 2));
}

}  // namespace
}  // namespace kvmesh
