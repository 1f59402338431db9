#include "kvmesh/thread_pool.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

#include "kvmesh/error.hpp"

namespace kvmesh {
namespace {

TEST(ThreadPool, RunsEachItemOnceOnAKnownThread) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int items : {0, 1, 3, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(items));
      std::vector<std::atomic<int>> inside(static_cast<std::size_t>(threads));
      pool.for_each(items, [&](std::int64_t item, int thread) {
        ASSERT_LT(thread, threads);
        EXPECT_EQ(inside[static_cast<std::size_t>(thread)]++, 0) << "two calls with one thread id";
        ++runs[static_cast<std::size_t>(item)];
        --inside[static_cast<std::size_t>(thread)];
      });
      for (const auto& count : runs) EXPECT_EQ(count, 1);
    }
  }
}

TEST(ThreadPool, HasSomeThreads) {
  EXPECT_THROW(ThreadPool(0), InvalidArgument);
  EXPECT_THROW(ThreadPool(-1), InvalidArgument);
  EXPECT_THROW(ThreadPool(1'000'000'000), InvalidArgument);
}

TEST(ThreadPool, ManyShortLoopsOneAfterTheOther) {
  ThreadPool pool(3);
  std::int64_t sum = 0;
  for (int round = 0; round < 2000; ++round) {
    std::atomic<std::int64_t> items{0};
    pool.for_each(6, [&](std::int64_t, int) { ++items; });
    sum += items;
  }
  EXPECT_EQ(sum, 12000);
}

TEST(ThreadPool, RethrowsAndGoesOn) {
  ThreadPool pool(3);
  std::atomic<int> runs = 0;
  EXPECT_THROW(pool.for_each(100000,
                             [&](std::int64_t item, int) {
                               ++runs;
                               if (item == 5) throw std::runtime_error("item 5");
                             }),
               std::runtime_error);
  EXPECT_LT(runs, 100000) << "the others should have stopped";
  runs = 0;
  pool.for_each(10, [&](std::int64_t, int) { ++runs; });
  EXPECT_EQ(runs, 10);
}

}  // namespace
}  // namespace kvmesh
