#include "launch/engine/workers.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

#include "kvmesh/error.hpp"

namespace kvmesh::engine {
namespace {

TEST(Workers, EveryItemOnceInRangesNoLongerThanTheGrain) {
  for (int threads : {1, 2, 5}) {
    Workers workers(threads);
    EXPECT_EQ(workers.threads(), threads);
    for (std::int64_t items : {0, 1, 7, 64, 1000}) {
      for (std::int64_t grain : {1, 3, 2000}) {
        std::vector<std::atomic<int>> visits(static_cast<std::size_t>(items));
        std::atomic<int> too_long{0};
        workers.for_ranges(items, grain, [&](std::int64_t begin, std::int64_t end) {
          if (end - begin > grain) ++too_long;
          for (std::int64_t i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
        });
        EXPECT_EQ(too_long, 0);
        for (const auto& count : visits) ASSERT_EQ(count, 1) << threads << " threads";
      }
    }
  }
}

TEST(Workers, ManyShortLoopsOneAfterTheOther) {
  Workers workers(3);
  std::int64_t sum = 0;
  for (int round = 0; round < 2000; ++round) {
    std::atomic<std::int64_t> items{0};
    workers.for_ranges(6, 1, [&](std::int64_t begin, std::int64_t end) { items += end - begin; });
    sum += items;
  }
  EXPECT_EQ(sum, 12000);
}

TEST(Workers, NeedsAThread) { EXPECT_THROW(Workers(0), InvalidArgument); }

}  // namespace
}  // namespace kvmesh::engine
