// Moves of pages that fail, and the plans of pages that have moved.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "core/posix/free_memory.hpp"
#include "tests/runtime/cache/cache_fixture.hpp"
#include "tests/support/ranks.hpp"

namespace kvmesh {
namespace {

using namespace std::chrono_literals;
using test::small_cache_options;

CacheOptions packed() {
  CacheOptions options = small_cache_options();
  options.placement = Placement::kPacked;
  return options;
}

std::vector<PageId> table(const KvCache& cache, SequenceId sequence) {
  const std::span<const PageId> pages = cache.allocator().pages(sequence);
  return {pages.begin(), pages.end()};
}

TEST(Movement, MovesNothingIfAPeerDoesNotCome) {
  test::LoopbackRanks<2>::run([](Communicator& comm) {
    Mesh mesh(comm, {.threads = 1, .device = DeviceChoice::kCpu});
    KvCache cache(mesh, packed());
    const SequenceId sequence = cache.create();
    test::fill(cache, sequence, 20);
    const std::vector<PageId> before = table(cache, sequence);
    const std::uint64_t version = cache.allocator().version(sequence);
    for (Communicator* each : {&mesh.world(), &mesh.kv_comm()}) each->set_deadline(200ms);
    barrier(comm);
    if (comm.rank().value == 0) {
      EXPECT_THROW(cache.rebalance(100), Timeout);
      EXPECT_EQ(table(cache, sequence), before);
      EXPECT_EQ(cache.allocator().version(sequence), version);
      cache.allocator().verify_integrity();
      EXPECT_EQ(cache.create().slot(), sequence.slot() + 1) << "no moves are in progress";
    }
  });
}

TEST(Movement, LeavesPlansOfOtherSequencesValid) {
  test::LoopbackRanks<2>::run([](Communicator& comm) {
    Mesh mesh(comm, {.threads = 1, .device = DeviceChoice::kCpu});
    KvCache cache(mesh, packed());
    const SequenceId first = cache.create(), second = cache.create();
    test::fill(cache, first, 16);
    test::fill(cache, second, 4);
    StepPlan of_first = cache.plan({{first, 0, 1}}), of_second = cache.plan({{second, 0, 1}});
    const std::vector<PageId> before = table(cache, first);
    EXPECT_EQ(cache.rebalance(1), 1);
    ASSERT_EQ(table(cache, first), before) << "the short one moves first, as a whole";
    const auto runs = [](StepPlan& plan) {
      try {
        static_cast<void>(plan.participation(0));
        std::vector<float> ones(4 * 8, 1), out(4 * 6);
        plan.run(0, {.q = tensor(ones.data(), {1, 4, 8})},
                 {.o = tensor(out.data(), {1, 4, 6}), .lse = {}});
        EXPECT_EQ(out[0], 1);
        return true;
      } catch (const InvalidArgument&) {
        return false;
      }
    };
    EXPECT_TRUE(runs(of_first));
    EXPECT_FALSE(runs(of_second));
  });
}

TEST(Movement, RefusesRanksAndSizesThatDoNotExist) {
  test::LoopbackRanks<2>::run([](Communicator& comm) {
    Mesh mesh(comm, {.threads = 1, .device = DeviceChoice::kCpu});
    KvCache cache(mesh, small_cache_options());
    using test::expect_refused;
    expect_refused<InvalidArgument>(cache, [&] { cache.rebalance(-1); });
    expect_refused<InvalidArgument>(cache, [&] { cache.rebalance_now({.limit = -1}); });
    expect_refused<InvalidArgument>(cache, [&] { cache.rebalance_now({.leaving = PageRank{2}}); });
    expect_refused<InvalidArgument>(cache, [&] { cache.drain(PageRank{2}); });
    expect_refused<InvalidArgument>(cache, [&] { cache.drain(PageRank{-1}); });
    for (const int rank :
         {-1, 0, 1, 2})  // two that are in use, and two that the mesh does not have
      expect_refused<InvalidArgument>(cache, [&] { cache.add_rank(PageRank{rank}); });
    cache.drain(PageRank{1});
    cache.add_rank(PageRank{1});
    expect_refused<InvalidArgument>(cache, [&] { cache.add_rank(PageRank{1}); });
    expect_refused<InvalidArgument>(cache, [&] { cache.resize(PageRank{0}, 7); });
    CacheOptions options = small_cache_options();
    options.max_pages_per_rank = -1;
    EXPECT_THROW(KvCache(mesh, options), InvalidArgument);
  });
}

TEST(Movement, GrowsNoFurtherThanTheMachineHas) {
  Mesh mesh(make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCpu});
  CacheOptions options = small_cache_options();
  options.kv_heads = options.q_heads = 64;
  options.k_dim = options.v_dim = 512;
  options.page_size = 64;
  constexpr std::int64_t kPageBytes = std::int64_t{32} << 20;  // of two layers
  // A little less than the machine has, of which some is always in use.
  const auto all = static_cast<std::int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
  options.max_pages_per_rank = all / kPageBytes - 1;
  KvCache cache(mesh, options);
  EXPECT_EQ(cache.resize(PageRank{0}, 7), 0);
  EXPECT_EQ(cache.allocator().free_pages(), 7);
  EXPECT_EQ(cache.pool_bytes(), 7 * kPageBytes);
  const std::uint64_t digest = cache.digest();
  const auto free = static_cast<std::int64_t>(free_memory({}));
  if (free > (options.max_pages_per_rank - 8) * kPageBytes) GTEST_SKIP() << "nothing is in use";
  EXPECT_THROW(cache.resize(PageRank{0}, options.max_pages_per_rank), OutOfMemory);
  EXPECT_EQ(cache.digest(), digest);
}

}  // namespace
}  // namespace kvmesh
