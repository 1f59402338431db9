#include "kvmesh/thread_pool.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <ctime>
#include <stdexcept>
#include <thread>
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

// Returns 0 if a pool of several threads is refused at once where the user may start none, and
// leaves nothing behind; else a number for the failure. Runs in a process of its own, to which the
// limit applies. Root has no limit.
int refused_without_threads() {
  constexpr uid_t kNobody = 65534;
  if (getuid() == 0 && setuid(kNobody) != 0) return 77;
  const rlimit none{0, 0};
  if (setrlimit(RLIMIT_NPROC, &none) != 0) return 77;
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
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer has a thread of its own, and ends where it cannot start one";
#endif
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(20);
    _exit(refused_without_threads());
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << "it hung or crashed: signal " << WTERMSIG(status);
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "the limit cannot be set here";
  EXPECT_EQ(WEXITSTATUS(status), 0);
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
