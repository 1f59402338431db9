// Pages that move beside the steps: with copies that are held back, that are late, and that fail.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "tests/runtime/cache/gated_backend.hpp"
#include "tests/runtime/cache/moves/side_moves.hpp"
#include "tests/runtime/streams/late_backend.hpp"

namespace kvmesh::test {
namespace {

TEST(SideMoves, StepsGoOnWhileCopiesAreHeldBack) {
  on_ranks([](Communicator& comm, bool maps) {
    std::atomic<bool> is_open = false;
    MovingCache moving(
        comm,
        [&](std::unique_ptr<Backend> real) {
          return std::make_unique<GatedBackend>(std::move(real), is_open);
        },
        uneven());
    if (!maps) unmap(moving);
    KvCache& cache = moving.cache();
    const auto tables = moving.all_tables();
    for (int step = 0; step < 6; ++step) {
      const MoveProgress now = cache.rebalance_now({.limit = 5});
      EXPECT_EQ(now.moved, 0);
      EXPECT_EQ(now.moving, 5);
      moving.write(moving.sequences()[1], 1, 2);  // returns: it does not wait for the copies
      moving.check();
    }
    const std::vector<double> expected = moving.contents();
    auto after = moving.all_tables();
    for (std::size_t i = 0; i < tables.size(); ++i) {
      after[i].resize(tables[i].size());
      EXPECT_EQ(after[i], tables[i]) << "no page has moved";
    }
    barrier(comm);
    is_open = true;
    is_open.notify_all();
    EXPECT_EQ(finish(cache), 5);
    EXPECT_EQ(moving.contents(), expected);
    EXPECT_GT(level(cache, {.limit = 5}), 0);
    EXPECT_EQ(moving.contents(), expected);
    moving.check();
  });
}

TEST(SideMoves, WhatStepsDoMeanwhileIsKept) {
  on_ranks([](Communicator& comm, bool maps) {
    MovingCache moving(comm, kAsItIs, uneven());
    if (!maps) unmap(moving);
    KvCache& cache = moving.cache();
    const SequenceId first = moving.sequences()[0], fork = moving.sequences()[2];
    cache.rebalance_now({.limit = 100});
    cache.truncate(first, 9);  // within a page that moves
    moving.write(first, 10, 7);
    cache.make_writable(fork, 4, 8);
    const std::vector<double> expected = moving.contents();
    EXPECT_GT(finish(cache), 0);
    EXPECT_EQ(moving.contents(), expected);
    level(cache, {.limit = 3});
    EXPECT_EQ(moving.contents(), expected);
    moving.check();
  });
}

/// Calls until some rank has begun to copy pages to its own, and lets no copy end.
void begin_late_copies(MovingCache& moving, LateBackend& late) {
  for (std::uint8_t some = 0; some == 0;) {
    moving.cache().rebalance_now({.limit = 4});
    const bool copies = moving.mesh().rank().value > 0 && late.stream().moves() > 0;
    const auto all =
        all_gather_value(moving.mesh().world(), static_cast<std::uint8_t>(copies), "copies");
    some = std::ranges::max(all);
  }
  late.stream().stick(true);
  EXPECT_EQ(moving.cache().rebalance_now().moving, 4);
}

/// The keys that MovingCache::write has given the sequence in the first layer.
void expect_written(MovingCache& moving, SequenceId sequence, float value) {
  const PageAllocator& allocator = moving.cache().allocator();
  for (std::int64_t at = 0; at < allocator.length(sequence); ++at) {
    const PageId page = allocator.pages(sequence)[static_cast<std::size_t>(at / 4)];
    if (page.rank() != moving.mesh().page_rank()) continue;
    const TensorView k = moving.cache().planes(0)[0];
    const std::int64_t place = page.index() * k.stride(0) + at % 4 * k.stride(2);
    EXPECT_EQ(static_cast<const float*>(k.data)[place], value + static_cast<float>(at) * 0.125f);
  }
}

/// Late copies write to pages that others have got meanwhile, before these are written.
TEST(SideMoves, AnOperationTakesThePagesOfLateCopies) {
  on_ranks([](Communicator& comm, bool maps) {
    MovingCache moving(comm, kAsItIs, uneven());
    if (!maps) unmap(moving);
    KvCache& cache = moving.cache();
    LateBackend& late = make_late(cache, 0);
    begin_late_copies(moving, late);
    const std::int64_t free = cache.allocator().free_pages(), reserved = moving_pages(cache);
    ASSERT_GT(reserved, 0);
    const std::vector<double> before = moving.contents();
    const SequenceId all = cache.create();
    const std::uint64_t digest = cache.digest();
    EXPECT_FALSE(cache.try_reserve(all, (free + reserved + 1) * 4).has_value());
    EXPECT_FALSE(cache.try_plan({{all, (free + reserved + 1) * 4, 0}}).has_value());
    EXPECT_EQ(cache.digest(), digest) << "a refused operation takes nothing";
    EXPECT_EQ(moving_pages(cache), reserved);
    moving.write(all, (free + reserved) * 4, 9);
    late.stream().stick(false);
    EXPECT_EQ(finish(cache), 0);
    EXPECT_EQ(moving.contents(), before);
    expect_written(moving, all, 9);
    moving.check();
    cache.erase(all);
    EXPECT_GT(level(cache, {.limit = 4}), 0);
    EXPECT_EQ(moving.contents(), before);
    moving.check();
  });
}

TEST(SideMoves, PagesGivenUpAreFoundByReserve) {
  LoopbackRanks<2>::run([](Communicator& comm) {
    CacheOptions options = uneven();
    options.groups.clear();
    MovingCache moving(comm, kAsItIs, options);
    KvCache& cache = moving.cache();
    EXPECT_EQ(cache.rebalance_now({.limit = 3}).moving, 3);
    const SequenceId all = cache.create();
    const std::int64_t free = cache.allocator().free_pages();
    EXPECT_TRUE(cache.try_reserve(all, free * 4).has_value());
    EXPECT_EQ(cache.rebalance_now().moving, 3) << "they go on";
    const std::uint64_t digest = cache.digest();
    EXPECT_FALSE(cache.try_reserve(all, (free + 4) * 4).has_value());
    EXPECT_EQ(cache.digest(), digest) << "too few even without them";
    EXPECT_TRUE(cache.try_reserve(all, (free + 3) * 4).has_value());
    EXPECT_EQ(finish(cache), 0);
    moving.check();
  });
}

/// A page that only a move holds is usable when the move is given up.
TEST(SideMoves, PagesThatNobodyElseHoldsAreFoundByReserve) {
  LoopbackRanks<2>::run([](Communicator& comm) {
    CacheOptions options = uneven();
    options.groups.clear();
    MovingCache moving(comm, kAsItIs, options);
    KvCache& cache = moving.cache();
    EXPECT_EQ(cache.rebalance_now({.limit = 3}).moving, 3);
    for (const SequenceId sequence : moving.sequences()) cache.erase(sequence);
    const SequenceId all = cache.create();
    EXPECT_TRUE(cache.try_reserve(all, options.pages_per_rank * 2 * 4).has_value());
    EXPECT_EQ(finish(cache), 0);
    moving.check();
  });
}

TEST(SideMoves, BlockingMovesCompleteThem) {
  on_ranks([](Communicator& comm, bool maps) {
    MovingCache moving(comm, kAsItIs, uneven());
    if (!maps) unmap(moving);
    KvCache& cache = moving.cache();
    const std::vector<double> expected = moving.contents();
    EXPECT_EQ(cache.rebalance_now({.limit = 2}).moving, 2);
    EXPECT_GT(cache.rebalance(100), 0);
    EXPECT_EQ(moving.contents(), expected);
    const MoveProgress done = cache.rebalance_now();
    EXPECT_EQ(done.moved, 2);
    EXPECT_EQ(done.moving, 0);
    cache.drain(PageRank{1});
    cache.add_rank(PageRank{1});
    EXPECT_EQ(cache.rebalance_now({.limit = 1}).moving, 1);
    cache.drain(PageRank{0});
    EXPECT_EQ(cache.rebalance_now().moved, 1);
    EXPECT_EQ(moving.contents(), expected);
    moving.check();
  });
}

TEST(SideMoves, AWaitForLateCopiesOfOthersEndsAtTheDeadline) {
  LoopbackRanks<2>::run([](Communicator& comm) {
    MovingCache moving(comm, kAsItIs, uneven());
    KvCache& cache = moving.cache();
    LateBackend& late = make_late(cache, 0);
    cache.rebalance_now({.limit = 2});
    const std::vector<double> expected = moving.contents();
    if (comm.rank().value == 1) late.stream().stick(true);
    for (Communicator* each : {&moving.mesh().world(), &moving.mesh().kv_comm()})
      each->set_deadline(std::chrono::milliseconds(400));
    if (comm.rank().value == 1) {
      EXPECT_THROW(cache.drain(PageRank{1}), Timeout);
    } else {
      EXPECT_THROW(cache.drain(PageRank{1}), Error);
    }
    late.stream().stick(false);
    EXPECT_EQ(moving.contents(), expected);
    moving.check();
    cache.drain(PageRank{1});
    EXPECT_EQ(moving.contents(), expected);
    moving.check();
  });
}

TEST(SideMoves, EmptyARankBeforeItIsDrained) {
  on_ranks([](Communicator& comm, bool maps) {
    MovingCache moving(comm, kAsItIs, uneven());
    if (!maps) unmap(moving);
    KvCache& cache = moving.cache();
    const RebalanceOptions leaving{.limit = 3, .leaving = PageRank{0}};
    for (int step = 0; step < 3; ++step) {
      cache.rebalance_now(leaving);
      moving.write(moving.sequences()[1], 2, 2);
    }
    const std::vector<double> expected = moving.contents();
    level(cache, leaving);
    const std::int64_t rest = cache.drain(PageRank{0});
    EXPECT_LE(rest, 2 * cache.groups()) << "pages that steps write to";
    EXPECT_EQ(moving.contents(), expected);
    PrefixKey key = cache.make_prefix_key();
    key.append(std::vector<std::int32_t>(8, 5));
    EXPECT_EQ(cache.allocator().pool_pages(PageRank{0}), 0);
    const PrefixMatch match = cache.match_prefix(key);
    EXPECT_EQ(match.tokens, 8) << "cached pages have moved, too";
    cache.release(match);
    moving.check();
  });
}

TEST(SideMoves, NothingMovesIfAPeerDoesNotCome) {
  LoopbackRanks<2>::run([](Communicator& comm) {
    MovingCache moving(comm, kAsItIs, uneven());
    KvCache& cache = moving.cache();
    const auto before = moving.all_tables();
    for (Communicator* each : {&moving.mesh().world(), &moving.mesh().kv_comm()})
      each->set_deadline(std::chrono::milliseconds(200));
    barrier(comm);
    if (comm.rank().value == 0) {
      EXPECT_THROW(cache.rebalance_now({.limit = 4}), Timeout);
      EXPECT_EQ(moving.all_tables(), before);
      cache.allocator().verify_integrity();
      EXPECT_NO_THROW(cache.create());
    }
  });
}

/// Lets one step of `failing` fail, in each call in turn, and expects that all ranks throw in the
/// same call, and that later calls move the pages. Returns the number of steps.
int fail_each_step(MovingCache& moving, Faults& faults, int failing) {
  KvCache& cache = moving.cache();
  Communicator& world = moving.mesh().world();
  const std::vector<double> expected = moving.contents();
  for (int fails = 0;; ++fails) {
    SCOPED_TRACE(testing::Message() << "step " << fails << " of rank " << failing);
    const bool mine = moving.mesh().rank().value == failing;
    faults = {.fails = mine ? fails : -1};
    std::vector<int> throwing;
    std::int64_t moved = 0, moving_now = 1;
    for (int call = 0; call < 100 && moving_now > 0; ++call) {
      try {
        const MoveProgress now = cache.rebalance_now({.limit = 3});
        moved += now.moved;
        moving_now = now.moving;
      } catch (const Error&) {
        throwing.push_back(call);
      }
      moving.check();
    }
    const auto injected = static_cast<std::uint8_t>(mine && faults.steps > fails);
    const auto was = all_gather_value(world, injected, "was it injected");
    faults = {};
    const int first = throwing.empty() ? -1 : throwing.front();
    for (const int other : all_gather_value(world, first, "calls that threw"))
      EXPECT_EQ(other, first);
    EXPECT_LE(throwing.size(), 1u);
    EXPECT_GT(moved, 0);
    EXPECT_EQ(moving_now, 0);
    EXPECT_EQ(moving.contents(), expected);
    if (was[static_cast<std::size_t>(failing)] == 0) {
      EXPECT_TRUE(throwing.empty());
      return fails;
    }
    EXPECT_EQ(throwing.size(), 1u);
    for (const PageRank rank : {PageRank{1}, PageRank{2}}) cache.drain(rank);
    for (const PageRank rank : {PageRank{1}, PageRank{2}}) cache.add_rank(rank);
  }
}

TEST(SideMoves, AFailureOfOneRankGivesThemUpOnAll) {
  for (const bool maps : {true, false})
    for (int failing = 0; failing < 3; ++failing)
      LoopbackRanks<3>::run([&](Communicator& comm) {
        Faults faults;
        CacheOptions options = uneven();
        options.groups.clear();
        MovingCache moving(
            comm,
            [&](std::unique_ptr<Backend> real) {
              return std::make_unique<FaultyBackend>(std::move(real), faults);
            },
            options);
        if (!maps) unmap(moving);
        EXPECT_GT(fail_each_step(moving, faults, failing), 6);
      });
}

/// Each of the ranks with one part of the heads moves its part of a page; all wait for the last.
TEST(SideMoves, PartsOfTheHeadsMoveTogether) {
  for (const bool maps : {true, false})
    LoopbackRanks<4>::run([&](Communicator& comm) {
      std::atomic<bool> fails = comm.rank().value == 3;
      MovingCache moving(
          comm,
          [&](std::unique_ptr<Backend> real) {
            return std::make_unique<FaultyCopies>(std::move(real), fails);
          },
          uneven(), 2);
      if (!maps) unmap(moving);
      const std::vector<double> expected = moving.contents();
      const auto before = moving.all_tables();
      EXPECT_THROW(level(moving.cache(), {.limit = 3}), Error);
      EXPECT_EQ(moving.all_tables(), before);
      fails = false;
      EXPECT_GT(level(moving.cache(), {.limit = 3}), 3);
      EXPECT_NE(moving.all_tables(), before);
      EXPECT_EQ(moving.contents(), expected);
      moving.check();
    });
}

TEST(SideMoves, AFailingCopyOnAThreadGivesThemUpOnAll) {
  LoopbackRanks<2>::run([](Communicator& comm) {
    std::atomic<bool> fails = comm.rank().value == 1;
    MovingCache moving(
        comm,
        [&](std::unique_ptr<Backend> real) {
          return std::make_unique<FaultyCopies>(std::move(real), fails);
        },
        uneven());
    KvCache& cache = moving.cache();
    const auto before = moving.all_tables();
    EXPECT_THROW(level(cache, {.limit = 4}), Error);
    EXPECT_EQ(moving.all_tables(), before);
    moving.check();
    fails = false;
    EXPECT_GT(level(cache, {.limit = 4}), 0);
    moving.check();
  });
}

}  // namespace
}  // namespace kvmesh::test
