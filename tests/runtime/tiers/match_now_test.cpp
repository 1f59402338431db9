// Matches that do not wait for files.
#include "tests/runtime/tiers/held_files.hpp"

namespace kvmesh::test {
namespace {

using Found = HeldCache::Found;

TEST(MatchNow, ReturnsWhileReadsAreUnderWay) {
  on_held_ranks([](HeldCache& served) {
    const PrefixKey key = served.store(counted(0, 24));
    served.disk.hold(true);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(served.now(key), (Found{0, 24}));
    EXPECT_LE(served.disk.reads(), 1);
    EXPECT_EQ(served.cache().tier_statistics().file.loads, 0);
    served.disk.hold(false);
    EXPECT_EQ(served.in_the_end(key), 24);
    EXPECT_EQ(served.cache().tier_statistics().pages_back, 6);
    EXPECT_EQ(served.of_all(served.disk.reads()), 6) << "each page is read once";
    EXPECT_EQ(served.cache().allocator().sequences(), 0);
    served.expect_content(key, 24);
  });
}

TEST(MatchNow, PagesThatHaveComeOnOneRankAreNoHitsWithoutTheOthers) {
  for (const int late : {0, 1}) {
    on_held_ranks(
        [&](HeldCache& served) {
          const bool is_late = served.mesh().rank().value == late;
          const PrefixKey key = served.store(counted(0, 24));
          served.disk.hold(is_late);
          EXPECT_EQ(served.now(key), (Found{0, 24}));
          const std::int64_t before = served.pages_before(late) * kPage;
          ASSERT_LT(before, 24);
          if (!is_late) served.wait_for_own_loads();
          EXPECT_EQ(served.now(key), (Found{before, 24 - before}));
          served.disk.hold(false);
          EXPECT_EQ(served.in_the_end(key), 24);
          served.expect_content(key, 24);
        },
        {2, 3});
  }
}

TEST(MatchNow, AFailedReadOfOneRankIsAMissOnAll) {
  for (const int failing : {0, 1}) {
    on_held_ranks(
        [&](HeldCache& served) {
          const bool fails = served.mesh().rank().value == failing;
          const PrefixKey key = served.store(counted(0, 24));
          served.disk.hold(true);
          EXPECT_EQ(served.now(key), (Found{0, 24}));
          const std::int64_t before = served.pages_before(failing) * kPage;
          ASSERT_LT(before, 24);
          served.disk.fail(fails);
          served.disk.hold(false);
          EXPECT_EQ(served.in_the_end(key), before);
          EXPECT_EQ(served.cache().tier_statistics().faults.io > 0, fails);
          EXPECT_EQ(served.cache().allocator().sequences(), 0);
          const std::int64_t reads = served.disk.reads();
          EXPECT_EQ(served.now(key), (Found{before, 0}));
          EXPECT_EQ(served.disk.reads(), reads) << "the file is not read again";
          served.expect_content(key, before);

          served.disk.fail(false);
          const PrefixMatch match = served.cache().match_prefix(key);
          EXPECT_EQ(match.tokens, 24) << "match_prefix reads it";
          served.cache().release(match);
          const auto stores = [&] { return served.cache().tier_statistics().file.stores; };
          const std::int64_t stores_before = stores();
          served.evict();
          served.cache().flush_tiers();
          EXPECT_EQ(stores(), stores_before) << "a file that was read needs no store";
          EXPECT_EQ(served.in_the_end(key), 24);
        },
        {2, 3});
  }
}

TEST(MatchNow, WhatIsInMemoryIsUsableAtOnce) {
  on_held_ranks(
      [](HeldCache& served) {
        const PrefixKey key = served.store(counted(0, 24));
        served.disk.hold(true);
        const Found found = served.now(key);
        EXPECT_GT(found.tokens, 0);
        EXPECT_GT(found.loading, 0);
        EXPECT_EQ(found.tokens + found.loading, 24);
        EXPECT_EQ(served.cache().tier_statistics().file.loads, 0);
        EXPECT_EQ(served.now(key), found);
        served.disk.hold(false);
        EXPECT_EQ(served.in_the_end(key), 24);
        served.expect_content(key, 24);
      },
      {1, 2}, 2);
}

/// What comes from host tiers is there when the files before it are: later work waits for the
/// copies, and no page comes back twice.
TEST(MatchNow, PagesOfHostTiersBehindFilesComeBackOnce) {
  on_held_ranks(
      [](HeldCache& served) {
        KvCache& cache = served.cache();
        cache.drain(PageRank{0});  // the second rank has four pages; two of them find room on it
        served.publish(counted(0, 16));
        cache.add_rank(PageRank{0});
        const PrefixKey key = served.publish(counted(0, 20));
        cache.flush_tiers();
        served.evict();
        barrier(served.mesh().world());  // all have written their files
        cache.drain(PageRank{1});        // the first rank gets no room for pages of files
        const SequenceId other = cache.create();
        cache.reserve(other, (HeldCache::kPages - 1) * kPage);
        cache.add_rank(PageRank{1});

        const bool is_first = served.mesh().rank().value == 0;
        served.hold_copies(is_first);
        served.disk.hold(true);
        EXPECT_EQ(served.now(key), (Found{8, 12}));
        std::string loads;
        for (const auto& load : loadings_of(served.tiers()).front().loads)
          loads += (load.from_file ? " file " : " host ") + std::to_string(load.to.rank().value);
        ASSERT_EQ(loads, " file 1 file 1 host 0");
        cache.erase(other);
        served.disk.hold(false);
        if (!is_first) served.wait_for_own_loads();
        EXPECT_EQ(served.now(key), (Found{20, 0}));
        EXPECT_FALSE(served.tiers().is_loading());
        EXPECT_EQ(cache.tier_statistics().pages_back, 5);
        served.hold_copies(false);
        served.expect_content(key, 20);
      },
      {2}, 2);
}

/// They come back once there is room, but nothing brings them meanwhile.
TEST(MatchNow, PagesOfTheHostTierWithoutRoomAreNotLoading) {
  on_held_ranks(
      [](HeldCache& served) {
        KvCache& cache = served.cache();
        const PrefixKey key = served.publish(counted(0, 8));
        auto more = counted(0, 8);
        for (const std::int32_t unknown : counted(500, 4)) more.push_back(unknown);
        const PrefixKey longer = served.key_of(more);
        served.evict();
        const SequenceId other = cache.create();
        cache.reserve(other, cache.allocator().free_pages() * kPage);
        EXPECT_EQ(served.now(key), (Found{0, 0}));
        EXPECT_EQ(served.now(longer), (Found{0, 0}));
        cache.erase(other);
        EXPECT_EQ(served.now(longer), (Found{8, 0}));
        served.expect_content(key, 8);
      },
      {1, 2, 3}, 40);
}

TEST(MatchNow, WaitsForNoStoreOfAFile) {
  on_held_ranks(
      [](HeldCache& served) {
        served.store(counted(100, 4));  // so that the next has nothing to wait for
        const PrefixKey key = served.publish(counted(0, 24));
        served.disk.hold(true);
        served.evict();
        EXPECT_EQ(served.now(key), (Found{0, 24}));
        served.disk.hold(false);
        EXPECT_EQ(served.in_the_end(key), 24);
        served.expect_content(key, 24);
      },
      {1});
}

TEST(MatchNow, KeysThatBeginAlikeShareLoads) {
  on_held_ranks([](HeldCache& served) {
    auto tokens = counted(0, 16);
    const PrefixKey shared = served.key_of(tokens);
    for (const std::int32_t more : counted(500, 8)) tokens.push_back(more);
    const PrefixKey whole = served.store(tokens);
    served.disk.hold(true);
    EXPECT_EQ(served.now(shared), (Found{0, 16}));
    EXPECT_EQ(served.now(whole), (Found{0, 16})) << "what comes behind is read later";
    served.disk.hold(false);
    EXPECT_EQ(served.in_the_end(whole), 24);
    EXPECT_EQ(served.of_all(served.disk.reads()), 6);
    served.expect_content(whole, 24);
  });
}

TEST(MatchNow, LoadsThatNoOneAsksForAgainAreCached) {
  on_held_ranks([](HeldCache& served) {
    const PrefixKey key = served.store(counted(0, 12)), other = served.store(counted(300, 8));
    EXPECT_EQ(served.now(key), (Found{0, 12}));
    const PrefixMatch match = served.cache().match_prefix(other);
    EXPECT_EQ(match.tokens, 8);
    served.cache().release(match);
    EXPECT_EQ(served.cache().allocator().sequences(), 0);
    EXPECT_EQ(served.cache().tier_statistics().pages_back, 5);
    PrefixMatch found = served.cache().match_prefix(key);
    EXPECT_EQ(found.tokens, 12);
    served.cache().release(found);
    EXPECT_EQ(served.of_all(served.disk.reads()), 5);
    served.expect_content(key, 12);
  });
}

TEST(MatchNow, LoadsWhatThereIsRoomFor) {
  on_held_ranks(
      [](HeldCache& served) {
        const PrefixKey key = served.store(counted(0, 24));
        const SequenceId other = served.cache().create();
        served.cache().reserve(other, (HeldCache::kPages - 3) * kPage);
        const Found found = served.now(key);
        EXPECT_EQ(found.tokens + found.loading, 12);
        EXPECT_EQ(served.in_the_end(key), 12);
        served.cache().erase(other);
        EXPECT_EQ(served.in_the_end(key), 24);
        served.expect_content(key, 24);
      },
      {1});
}

/// A sequence that is appended to takes pages that are being loaded, all but two.
TEST(MatchNow, StepsTakeThePagesOfLoads) {
  on_held_ranks([](HeldCache& served) {
    const PrefixKey key = served.store(counted(0, 24));
    served.disk.hold(true);
    EXPECT_EQ(served.now(key), (Found{0, 24}));
    KvCache& cache = served.cache();
    const auto pages = static_cast<std::size_t>(HeldCache::kPages * served.mesh().size() - 2);
    PrefixKey large = served.key_of(counted(700, pages * kPage));
    const SequenceId sequence = cache.create();
    ASSERT_LT(cache.allocator().free_pages(), static_cast<std::int64_t>(pages));
    (void)prefill(cache, sequence, large);
    EXPECT_FALSE(served.tiers().is_loading());
    served.disk.hold(false);
    cache.flush_tiers();  // behind the loads
    EXPECT_LE(served.disk.reads(), 1) << "the others were given up";
    served.expect_content(sequence, large);
    EXPECT_EQ(cache.allocator().sequences(), 0);
    EXPECT_EQ(served.in_the_end(key), 24);
    served.expect_content(key, 24);
  });
}

TEST(MatchNow, OtherOperationsTakeThePagesOfLoads) {
  on_held_ranks([](HeldCache& served) {
    KvCache& cache = served.cache();
    const PrefixKey key = served.store(counted(0, 24));
    const std::int64_t all = std::int64_t{HeldCache::kPages} * served.mesh().size();
    const auto loads = [&] {
      served.disk.hold(true);
      EXPECT_EQ(served.now(key), (Found{0, 24}));
      EXPECT_TRUE(served.tiers().is_loading());
    };
    const auto expect_given_up = [&] {
      EXPECT_FALSE(served.tiers().is_loading());
      served.disk.hold(false);
      cache.check_replicas();
      cache.allocator().verify_integrity();
    };
    loads();
    const SequenceId sequence = cache.create();
    const std::uint64_t digest = cache.digest();
    EXPECT_FALSE(cache.try_reserve(sequence, (all + 1) * kPage)) << "too many in any case";
    EXPECT_FALSE(cache.try_plan({{sequence, (all + 1) * kPage, 0}}));
    EXPECT_TRUE(served.tiers().is_loading());
    EXPECT_EQ(cache.digest(), digest);
    EXPECT_TRUE(cache.try_reserve(sequence, all * kPage));
    expect_given_up();
    cache.erase(sequence);

    const SequenceId parent = cache.create();
    fill(cache, parent, (all - 6) * kPage);
    const SequenceId child = cache.fork(parent);
    loads();
    EXPECT_TRUE(cache.try_make_writable(child, 0, 2 * kPage));
    expect_given_up();
    cache.truncate(child, 2 * kPage);
    MemorySink sink;
    const bool is_first = served.mesh().rank().value == 0;
    cache.export_sequence(child, is_first ? &sink : nullptr);
    cache.erase(child);
    loads();
    MemorySource source(sink.bytes());
    cache.erase(cache.import_sequence(is_first ? &source : nullptr).sequence);
    expect_given_up();
    cache.erase(parent);
    EXPECT_EQ(served.in_the_end(key), 24);
    served.expect_content(key, 24);
  });
}

TEST(MatchNow, MovesOfTheirPagesEndLoads) {
  on_held_ranks(
      [](HeldCache& served) {
        KvCache& cache = served.cache();
        const PrefixKey key = served.store(counted(0, 24));
        served.disk.hold(true);
        EXPECT_EQ(served.now(key), (Found{0, 24}));
        EXPECT_EQ(cache.rebalance(20), 0);
        EXPECT_TRUE(served.tiers().is_loading()) << "no page has moved";
        EXPECT_EQ(cache.drain(PageRank{1}), 0) << "the loads' pages are free";
        EXPECT_FALSE(served.tiers().is_loading());
        served.disk.hold(false);
        cache.add_rank(PageRank{1});
        EXPECT_EQ(served.in_the_end(key), 24);
        served.expect_content(key, 24);
      },
      {2, 3});
}

/// Pages that loads write to stay where they are.
TEST(MatchNow, LoadsGoOnBesideMovesOfOtherPages) {
  on_held_ranks(
      [](HeldCache& served) {
        KvCache& cache = served.cache();
        const PrefixKey key = served.store(counted(0, 24));
        const SequenceId other = cache.create();
        static_cast<void>(cache.plan({{other, 2 * kPage, 0}}));
        const PageRank home = cache.allocator().pages(other)[0].rank();
        served.disk.hold(true);
        EXPECT_EQ(served.now(key), (Found{0, 24}));
        std::int64_t moved = 0;
        for (MoveProgress now{.moving = 1}; now.moving > 0; moved += now.moved)
          now = cache.rebalance_now({.limit = 20, .leaving = home});
        EXPECT_GT(moved, 0);
        EXPECT_NE(cache.allocator().pages(other)[0].rank(), home);
        EXPECT_TRUE(served.tiers().is_loading());
        served.disk.hold(false);
        EXPECT_EQ(served.in_the_end(key), 24);
        served.expect_content(key, 24);
        cache.check_replicas();
      },
      {2, 3});
}

TEST(MatchNow, ACacheMayEndWhileLoadsAreUnderWay) {
  for (const int ranks : {1, 2, 3}) {
    const Folder folder;
    run_on_threads(ranks,
                   [&](Mesh& mesh) {
                     HeldCache served(mesh, folder);
                     const PrefixKey key = served.store(counted(0, 24));
                     served.disk.hold(true);
                     EXPECT_EQ(served.now(key), (Found{0, 24}));
                     std::thread later([&] { served.disk.hold(false); });
                     served.destroy();
                     later.join();
                     HeldCache next(mesh, folder);
                     EXPECT_EQ(next.in_the_end(key), 24);
                     next.expect_content(key, 24);
                   },
                   {.threads = 1});
  }
}

TEST(MatchNow, LoadsMayGoOnWhenTheRanksHaveParted) {
  const Folder folder;
  std::vector<std::unique_ptr<HeldCache>> left(2);
  run_on_threads(2,
                 [&](Mesh& mesh) {
                   auto served = std::make_unique<HeldCache>(mesh, folder);
                   const PrefixKey key = served->store(counted(0, 24));
                   served->disk.hold(true);
                   EXPECT_EQ(served->now(key), (Found{0, 24}));
                   left[static_cast<std::size_t>(mesh.rank().value)] = std::move(served);
                 },
                 {.threads = 1});
  for (const auto& served : left) {
    served->disk.hold(false);
    served->wait_for_own_loads();
  }
}

/// A file is bad, not only unreadable now: it is removed, and the page stored anew later.
TEST(MatchNow, ACorruptFileIsAMissUntilItsPageIsStoredAgain) {
  const Folder folder;
  run_on_threads(2,
                 [&](Mesh& mesh) {
                   HeldCache served(mesh, folder);
                   const PrefixKey key = served.store(counted(0, 24));
                   if (mesh.rank().value == 0)
                     for (const fs::path& file : folder.files()) fs::resize_file(file, 70);
                   barrier(mesh.world());
                   EXPECT_EQ(served.in_the_end(key), 0);
                   EXPECT_GT(served.of_all(served.cache().tier_statistics().faults.truncated), 0);
                   for (int i = 0; i < 6 && served.in_the_end(key) < 24; ++i)
                     served.store(counted(0, 24));  // each time the next bad file is found
                   EXPECT_EQ(served.in_the_end(key), 24);
                   served.expect_content(key, 24);
                 },
                 {.threads = 1});
}

}  // namespace
}  // namespace kvmesh::test
