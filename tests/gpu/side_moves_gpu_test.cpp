// Pages that move beside the steps of a GPU: their copies wait for the stream of the steps, and the
// host for neither. Copies on write of several ranks wait for no other stream.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <vector>

#include "tests/contracts/on_each_placement.hpp"
#include "tests/gpu/held_stream.hpp"
#include "tests/support/ranks.hpp"

namespace kvmesh::test {
namespace {

constexpr std::int64_t kMoves = 4;

/// Calls until nothing moves. Returns how many pages have moved.
std::int64_t end_moves(CheckedCache& cache) {
  for (std::int64_t moved = 0;;) {
    const MoveProgress now = cache.rebalance_now({});
    moved += now.moved;
    if (now.moving == 0) return moved;
    std::this_thread::yield();
  }
}

/// Runs the script on a cache whose first rank gets all pages.
void on_packed_pages(const CacheScript& script) {
  MpiRanks::run([&](Communicator& comm) {
    const std::uint64_t seed = agreed_seed(comm);
    SCOPED_TRACE(seed_trace(seed));
    Mesh mesh(comm, {.threads = 1, .device = DeviceChoice::kCuda});
    if (mesh.kv_parallel() == 1) GTEST_SKIP() << "one rank has nowhere to move to";
    CacheOptions options = small_cache(kSmallShape);
    options.placement = Placement::kPacked;
    CheckedCache cache(mesh, options, seed);
    script(cache);
    expect_good(cache);
  });
}

TEST(SideMovesOnGpus, WaitForTheStreamOfTheSteps) {
  on_packed_pages([](CheckedCache& cache) {
    const std::vector<SequenceId> sequences{prompt(cache, 130), prompt(cache, 61)};
    cache.rebalance_now({.limit = kMoves});  // makes streams and buffers
    EXPECT_EQ(end_moves(cache), kMoves);
    {
      HeldStream held;
      for (int call = 0; call < 5; ++call) {
        const MoveProgress now = cache.cache().rebalance_now({.limit = kMoves}, held.view());
        EXPECT_EQ(now.moved, 0) << "before the work on the stream is done";
        EXPECT_EQ(now.moving, kMoves);
      }
    }
    EXPECT_EQ(end_moves(cache), kMoves);
    EXPECT_TRUE(cache.step(batch_of(sequences, 1, 2), {}));
  });
}

/// An operation that needs the pages takes them, while the copies to them wait for the stream.
TEST(SideMovesOnGpus, AreGivenUpWhileTheStreamIsHeld) {
  on_packed_pages([](CheckedCache& cache) {
    const std::vector<SequenceId> sequences{prompt(cache, 130), cache.create()};
    cache.rebalance_now({.limit = kMoves});
    end_moves(cache);
    {
      HeldStream held;
      EXPECT_EQ(cache.cache().rebalance_now({.limit = kMoves}, held.view()).moving, kMoves);
      const std::int64_t free = cache.allocator().free_pages();
      EXPECT_TRUE(cache.try_reserve(sequences[1], (free + kMoves) * kSmallShape.page_size));
    }
    EXPECT_EQ(end_moves(cache), 0);
    EXPECT_EQ(cache.allocator().free_pages(), 0);
    EXPECT_TRUE(cache.step(batch_of(sequences, 2), {})) << "on the pages that they have";
  });
}

/// Replans a step of one token of each fork, of the second while another stream stands still, and
/// drops the token again. The first makes streams and buffers.
void replan_beside_held_work(CheckedCache& cache, const std::vector<SequenceId>& forks) {
  KvCache& pages = cache.cache();
  Mesh& mesh = pages.mesh();
  const auto deadline = mesh.world().deadline();
  const auto set_deadlines = [&](std::chrono::milliseconds to) {
    for (Communicator* each : {&mesh.world(), &mesh.kv_comm()}) each->set_deadline(to);
  };
  Stream stream;
  const kvmesh::Stream on{static_cast<cudaStream_t>(stream)};
  StepPlan plan = pages.plan({});
  const auto replan = [&](SequenceId fork) {
    const std::int64_t length = pages.length(fork);
    pages.replan(plan, {{fork, 1}}, on);
    mesh.wait(on, "test");
    pages.truncate(fork, length);
  };
  replan(forks[0]);
  set_deadlines(std::chrono::seconds(2));
  {
    HeldStream other;  // all work of the device would wait for it
    replan(forks[1]);
  }
  set_deadlines(deadline);
}

TEST(CopiesOnWriteOnGpus, WaitForNoOtherStream) {
  on_packed_pages([](CheckedCache& cache) {
    std::vector<SequenceId> sequences{prompt(cache, 130)};
    for (int i = 0; i < 2; ++i) sequences.push_back(cache.fork(sequences[0]));
    const PageId shared = cache.allocator().pages(sequences[0]).back();
    replan_beside_held_work(cache, {sequences[1], sequences[2]});
    const PageId copy = cache.allocator().pages(sequences[2]).back();
    EXPECT_NE(copy, shared);
    EXPECT_EQ(copy.rank(), shared.rank());
    EXPECT_TRUE(cache.step(batch_of(sequences, 1, 2), {}));
  });
}

TEST(CopiesOnWriteOnGpus, OfAFullRankWaitForNoOtherStream) {
  on_packed_pages([](CheckedCache& cache) {
    std::vector<SequenceId> sequences{prompt(cache, 130)};
    for (int i = 0; i < 2; ++i) sequences.push_back(cache.fork(sequences[0]));
    const PageRank full = cache.allocator().pages(sequences[0]).back().rank();
    const std::int64_t free = cache.allocator().free_pages(full);
    EXPECT_TRUE(cache.try_reserve(cache.create(), free * kSmallShape.page_size));
    ASSERT_EQ(cache.allocator().free_pages(full), 0) << "packed: it fills that rank";
    replan_beside_held_work(cache, {sequences[1], sequences[2]});
    EXPECT_NE(cache.allocator().pages(sequences[2]).back().rank(), full);
    EXPECT_TRUE(cache.step(batch_of(sequences, 1, 2), {}));
  });
}

}  // namespace
}  // namespace kvmesh::test
