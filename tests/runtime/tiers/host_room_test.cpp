// Pages of host tiers whose ranks have no room for them.
#include <initializer_list>

#include "tests/runtime/tiers/held_files.hpp"

namespace kvmesh::test {
namespace {

constexpr std::int64_t kHostPages = 40;

/// What takes the room of a rank, and gives it back.
struct Taker {
  virtual ~Taker() = default;
  virtual void take(KvCache& cache, PageRank rank) = 0;
  virtual void give_back(KvCache& cache, PageRank rank) = 0;
};

struct Drain final : Taker {
  void take(KvCache& cache, PageRank rank) override { cache.drain(rank); }
  void give_back(KvCache& cache, PageRank rank) override { cache.add_rank(rank); }
};

/// Sequences hold all pages of the rank but `free`.
struct Hold final : Taker {
  explicit Hold(std::int64_t free) : free(free) {}
  void take(KvCache& cache, PageRank rank) override {
    std::vector<SequenceId> made;
    while (cache.allocator().free_pages() > 0) {
      made.push_back(cache.create());
      cache.reserve(made.back(), 1);
    }
    for (const SequenceId sequence : made) {
      const bool is_there = cache.allocator().pages(sequence)[0].rank() == rank;
      if (is_there && std::ssize(held) < HeldCache::kPages - free) {
        held.push_back(sequence);
      } else {
        cache.erase(sequence);
      }
    }
  }
  void give_back(KvCache& cache, PageRank) override {
    for (const SequenceId sequence : held) cache.erase(sequence);
    held.clear();
  }
  std::int64_t free;
  std::vector<SequenceId> held;
};

/// Calls `body` with one rank after the other without room, for pages that have left the device.
void without_room(HeldCache& served, Taker& taker, const std::function<void()>& body) {
  for (PageRank rank{0}; rank.value < served.mesh().size(); ++rank.value) {
    SCOPED_TRACE(testing::Message() << "rank " << rank.value);
    served.evict();
    taker.take(served.cache(), rank);
    body();
    taker.give_back(served.cache(), rank);
  }
}

TEST(HostRoom, FilesHaveWhatFindsNoRoomOnItsRank) {
  on_held_ranks(
      [](HeldCache& served) {
        const PrefixKey key = served.store(counted(0, 24));
        Drain drain;
        Hold hold_all(0), hold_most(1);
        for (Taker* const taker : std::initializer_list<Taker*>{&drain, &hold_all, &hold_most}) {
          without_room(served, *taker, [&] {
            EXPECT_EQ(served.in_the_end(key), 24);
            served.expect_content(key, 24);
          });
          without_room(served, *taker, [&] {
            const PrefixMatch match = served.cache().match_prefix(key);
            EXPECT_EQ(match.tokens, 24);
            PrefixKey longer = key;
            served.expect_content(served.cache().create_with_prefix(match), longer);
          });
        }
      },
      {2, 3}, kHostPages);
}

/// Without a file they are misses, until their rank has room.
TEST(HostRoom, ComesBack) {
  on_held_ranks(
      [](HeldCache& served) {
        std::vector<PrefixKey> keys;
        for (int i = 0; i < 6; ++i) keys.push_back(served.publish(counted(100 * i, 4)));
        const auto hits = [&] {
          std::int64_t tokens = 0;
          for (const PrefixKey& key : keys) {
            const auto found = served.now(key);
            EXPECT_EQ(found.loading, 0);
            const PrefixMatch match = served.cache().match_prefix(key);
            EXPECT_EQ(match.tokens, found.tokens);
            served.cache().release(match);
            tokens += match.tokens;
          }
          return tokens;
        };
        Drain drain;
        Hold hold(0);
        for (Taker* const taker : std::initializer_list<Taker*>{&drain, &hold}) {
          std::int64_t misses = 0;
          without_room(served, *taker, [&] { misses += 24 - hits(); });
          EXPECT_EQ(misses, 24) << "each page is on one rank";
        }
        EXPECT_EQ(hits(), 24);
      },
      {2, 3}, kHostPages);
}

TEST(HostRoom, WhatAnotherRankStoresAgainComesBackThere) {
  on_held_ranks(
      [](HeldCache& served) {
        KvCache& cache = served.cache();
        std::vector<PrefixKey> keys;
        const auto publish_all = [&] {
          for (int i = 0; i < 6; ++i) keys.push_back(served.publish(counted(100 * i, 4)));
          served.evict();
        };
        const auto hits = [&] {
          std::int64_t tokens = 0;
          for (const PrefixKey& key : keys) tokens += served.now(key).tokens;
          return tokens;
        };
        publish_all();
        for (PageRank rank{0}; rank.value < served.mesh().size(); ++rank.value) {
          cache.drain(rank);
          keys.clear();
          publish_all();
          EXPECT_EQ(hits(), 24) << "rank " << rank.value << " was drained";
          EXPECT_EQ(served.of_all(cache.tier_statistics().host.pages), 6) << "each is stored once";
          served.evict();
          cache.add_rank(rank);
          EXPECT_EQ(hits(), 24);
          served.expect_content(keys[0], 4);
        }
      },
      {2, 3}, 6);
}

TEST(HostRoom, ARankThatIsLeavingGetsItsPagesBackAndGivesThemAway) {
  on_held_ranks(
      [](HeldCache& served) {
        KvCache& cache = served.cache();
        const PageRank leaving{0};
        const auto give_away = [&] {
          for (MoveProgress now{.moving = 1}; now.moving > 0;)
            now = cache.rebalance_now({.limit = 64, .leaving = leaving});
        };
        const PrefixKey key = served.publish(counted(0, 24));
        served.evict();
        give_away();
        const PrefixMatch match = cache.match_prefix(key);
        EXPECT_EQ(match.tokens, 24);
        const SequenceId sequence = cache.create_with_prefix(match);
        const auto pages_there = [&] {
          return std::ranges::count_if(cache.allocator().pages(sequence),
                                       [&](PageId page) { return page.rank() == leaving; });
        };
        EXPECT_GT(pages_there(), 0);
        give_away();
        EXPECT_EQ(pages_there(), 0);
        cache.erase(sequence);
      },
      {2, 3}, kHostPages);
}

}  // namespace
}  // namespace kvmesh::test
