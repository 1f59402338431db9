#include "kvmesh/thread_pool.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <ctime>
#include <stdexcept>
#include <thread>
#include <vector>

#include "kvmesh/error.hpp"
#include "tests/support/few_threads.hpp"

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

// Returns 0 if a pool of several threads is refused at once where the user may start none, and
// leaves nothing behind; else a number for the failure.
int refused_without_threads() {
  try {
    ThreadPool pool(4);
    return 1;
  } catch (const OutOfThreads& error) {
    if (error.asked() != 3 || error.started() != 0) return 2;
  }
  std::int64_t sum = 0;
  ThreadPool(1).for_each(3, [&](std::int64_t item, int) { sum += item; });
  return sum == 3 ? 0 : 3;
}

TEST(ThreadPool, FailsAtOnceIfTheSystemStartsNoThreads) {
  test::expect_with_few_threads(0, refused_without_threads);
}

TEST(ThreadPool, SleepsWhenIdle) {
  ThreadPool pool(3);
  pool.for_each(3, [](std::int64_t, int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const std::clock_t before = std::clock();  // of all threads of the process
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_LT(std::clock() - before, CLOCKS_PER_SEC / 10) << "idle workers keep the cores busy";
  std::atomic<int> runs = 0;
  pool.for_each(100, [&](std::int64_t, int) { ++runs; });
  EXPECT_EQ(runs, 100) << "they wake again";
}

TEST(ThreadPool, RejectsALoopWithoutABody) {
  EXPECT_THROW(ThreadPool(1).for_each(1, nullptr), InvalidArgument);
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

TEST(ThreadPool, RethrowsAndStaysUsable) {
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
