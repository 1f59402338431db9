// The part of the contract that is about pages that move, and pools that change their sizes.
#include <algorithm>
#include <thread>

#include "tests/contracts/on_each_placement.hpp"
#include "tests/contracts/sequences_contract.hpp"

namespace kvmesh::test {
namespace {

/// Packed placement fills the first ranks, so that there is something to level.
TEST_P(SequencesContract, MovesPagesBetweenSteps) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    const int ranks = cache.cache().mesh().kv_parallel();
    std::vector<SequenceId> sequences = prompts(cache, {61, 5, 130, 18});
    sequences.push_back(cache.fork(sequences[0]));
    std::int64_t moved = 0;
    for (const std::int64_t limit : {3, 1, 100, 0, 1 << 20}) {
      const std::int64_t now = cache.rebalance(limit);
      EXPECT_LE(now, limit);
      moved += now;
      EXPECT_TRUE(cache.step(batch_of(sequences, 1, 2), {}));
    }
    const PageAllocator& allocator = cache.allocator();
    if (allocator.options().placement == Placement::kPacked && ranks > 1) {
      EXPECT_GT(moved, 0);
    }
    cache.rebalance();
    EXPECT_EQ(cache.rebalance(), 0) << "it is level";
    for (PageRank rank{1}; rank.value < ranks; ++rank.value)
      EXPECT_NEAR(allocator.free_pages(rank), allocator.free_pages(PageRank{0}), 1);
    cache.erase(sequences[2]);
    sequences.erase(sequences.begin() + 2);
    EXPECT_TRUE(cache.step(batch_of(sequences, 3), {}));
  });
}

/// Calls until no page moves any more. Returns how many have moved.
std::int64_t finish_moves(CheckedCache& cache, const RebalanceOptions& options = {}) {
  for (std::int64_t moved = 0;;) {
    const MoveProgress now = cache.rebalance_now(options);
    EXPECT_LE(now.moved, options.limit > 0 ? options.limit : 1000);
    moved += now.moved;
    if (now.moving == 0) return moved;
    std::this_thread::yield();
  }
}

/// Steps append, fork, roll back and end sequences whose pages are being copied.
TEST_P(SequencesContract, MovesPagesBesideSteps) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    const int ranks = cache.cache().mesh().kv_parallel();
    std::vector<SequenceId> sequences = prompts(cache, {61, 5, 130, 18});
    std::int64_t moved = 0, moving = 0;
    const auto go_on = [&](std::int64_t limit) {
      const MoveProgress now = cache.rebalance_now({.limit = limit});
      EXPECT_LE(now.moving, std::max<std::int64_t>(limit, moving));
      moving = now.moving;
      moved += now.moved;
      EXPECT_TRUE(cache.step(batch_of(sequences, 1, 2), {}));
    };
    for (const std::int64_t limit : {3, 3, 100, 100}) go_on(limit);
    sequences.push_back(cache.fork(sequences[0]));
    go_on(100);
    cache.truncate(sequences[2], 50);
    cache.truncate(sequences[4], 42);
    for (int i = 0; i < 3; ++i) go_on(100);
    cache.erase(sequences[0]);
    sequences.erase(sequences.begin());
    for (int i = 0; i < 3; ++i) go_on(100);
    cache.compact({{sequences[1], 40, {41, 43, 44}}});
    go_on(100);
    moved += finish_moves(cache);
    for (int i = 0; i < 6; ++i) moved += finish_moves(cache, {.limit = 5});
    const PageAllocator& allocator = cache.allocator();
    if (allocator.options().placement == Placement::kPacked && ranks > 1) {
      EXPECT_GT(moved, 0);
    }
    EXPECT_TRUE(cache.step(batch_of(sequences, 3), {}));
    cache.check_replicas();
  });
}

TEST_P(SequencesContract, EmptiesARankBesideSteps) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    const int ranks = cache.cache().mesh().kv_parallel();
    const std::vector<SequenceId> sequences = prompts(cache, {61, 5, 30, 18});
    for (PageRank rank{0}; rank.value < std::min(ranks, 3); ++rank.value) {
      for (int i = 0; i < 5; ++i) {
        cache.rebalance_now({.limit = 8, .leaving = rank});
        EXPECT_TRUE(cache.step(batch_of(sequences, 1, 2), {}));
      }
      finish_moves(cache, {.limit = 8, .leaving = rank});
      if (ranks == 1) return;
      EXPECT_LE(cache.resize(rank, 0), std::ssize(sequences)) << "the pages that steps write to";
      EXPECT_TRUE(cache.step(batch_of(sequences, 1), {}));
      cache.cache().add_rank(rank);
    }
  });
}

/// Every rank in turn, as before its process ends and after it has come back.
TEST_P(SequencesContract, DrainsRanksAndTakesThemBack) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    const int ranks = cache.cache().mesh().kv_parallel();
    std::vector<SequenceId> sequences = prompts(cache, {61, 5, 130, 18});
    sequences.push_back(cache.fork(sequences[2]));
    if (ranks == 1) {
      EXPECT_THROW(cache.resize(PageRank{0}, 0), OutOfPages);
      EXPECT_THROW(cache.cache().drain(PageRank{1}), InvalidArgument);
      return;
    }
    const auto holds = [&](PageRank rank) {
      return std::ranges::any_of(sequences, [&](SequenceId sequence) {
        return std::ranges::any_of(cache.allocator().pages(sequence), [&](PageId page) {
          return page.valid() && page.rank() == rank;
        });
      });
    };
    for (PageRank rank{0}; rank.value < std::min(ranks, 3); ++rank.value) {
      EXPECT_THROW(cache.cache().add_rank(rank), InvalidArgument);
      const bool has_pages = holds(rank);
      EXPECT_EQ(cache.resize(rank, 0) > 0, has_pages);
      EXPECT_EQ(cache.allocator().pool_pages(rank), 0);
      EXPECT_TRUE(cache.step(batch_of(sequences, 5, 2), {}));
      EXPECT_FALSE(holds(rank));
      cache.cache().add_rank(rank);
      EXPECT_EQ(cache.allocator().pool_pages(rank), cache.allocator().options().pages_per_rank);
      cache.rebalance();
      EXPECT_TRUE(holds(rank));
      EXPECT_TRUE(cache.step(batch_of(sequences, 1), {}));
    }
  });
}

TEST_P(SequencesContract, RefusesToMovePagesThatHaveNoRoom) {
  CacheOptions options = GetParam().small();
  options.pages_per_rank = 12;
  on_each_placement(GetParam(), options, [](CheckedCache& cache) {
    const int ranks = cache.cache().mesh().kv_parallel();
    const SequenceId most = prompt(cache, (12 * ranks - 2) * 4 - 3);
    const std::uint64_t digest = cache.cache().digest();
    for (PageRank rank{0}; rank.value < ranks; ++rank.value) {
      EXPECT_THROW(cache.resize(rank, 0), OutOfPages);
      EXPECT_FALSE(cache.cache().try_resize(rank, 9).has_value());
      EXPECT_THROW(cache.resize(rank, -1), InvalidArgument);
      EXPECT_THROW(cache.resize(rank, 13), InvalidArgument);
    }
    EXPECT_EQ(cache.cache().digest(), digest);
    EXPECT_TRUE(cache.step(batch_of({most}, 2), {}));
  });
}

/// Pools that begin with other sizes on each rank, shrink and grow.
TEST_P(SequencesContract, PoolsOfDifferentAndChangingSizes) {
  GetParam().run([](Communicator& comm) {
    const std::uint64_t seed = agreed_seed(comm);
    SCOPED_TRACE(seed_trace(seed));
    Mesh mesh(comm, {.threads = 1, .device = GetParam().device});
    CacheOptions options = GetParam().small();
    const auto pages_of = [](PageRank rank) { return 40 + 7 * std::int64_t{rank.value}; };
    options.pages_per_rank = pages_of(mesh.page_rank());
    options.max_pages_per_rank = 100;
    CheckedCache cache(mesh, options, seed);
    EXPECT_EQ(cache.cache().options().pages_per_rank, pages_of(mesh.page_rank()));
    const bool grows = cache.cache().options().max_pages_per_rank == 100;
    EXPECT_TRUE(grows || mesh.device().kind == DeviceKind::kCuda);
    if (!grows) {
      EXPECT_THROW(cache.resize(PageRank{0}, 100), Unsupported);
    }
    const PageAllocator& allocator = cache.allocator();
    for (PageRank rank{0}; rank.value < mesh.kv_parallel(); ++rank.value)
      EXPECT_EQ(allocator.pool_pages(rank), pages_of(rank));

    const std::int64_t bytes = cache.cache().pool_bytes();
    const std::vector<SequenceId> sequences = prompts(cache, {41, 5, 20, 10});
    for (const std::int64_t pages : grows ? std::vector<std::int64_t>{33, 100, 25, 40}
                                          : std::vector<std::int64_t>{33, 25, 40}) {
      for (PageRank rank{0}; rank.value < std::min(mesh.kv_parallel(), 2); ++rank.value)
        cache.resize(rank, pages);
      EXPECT_EQ(cache.cache().pool_bytes() > bytes, mesh.page_rank().value < 2 && pages == 100);
      cache.rebalance();
      EXPECT_TRUE(cache.step(batch_of(sequences, 1, 2), {}));
    }
    EXPECT_EQ(allocator.pool_pages(PageRank{0}), 40);
    expect_good(cache);
  });
}

}  // namespace
}  // namespace kvmesh::test
