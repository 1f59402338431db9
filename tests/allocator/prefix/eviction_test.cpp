// Tests which pages stay: the policies through an allocator of pages of one token.
#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <vector>

#include "allocator/prefix/prefix_cache.hpp"
#include "kvmesh/allocator.hpp"

namespace kvmesh {
namespace {

class Cache {
 public:
  Cache(Eviction policy, std::int64_t pages, int ranks = 1)
      : allocator_({.ranks = ranks,
                    .pages_per_rank = pages,
                    .page_size = 1,
                    .placement = Placement::kStriped,
                    .prefix = {.enabled = true, .eviction = policy}}) {}

  PrefixKey key(const std::vector<std::int32_t>& tokens) const {
    PrefixKey key(allocator_.prefix_rules());
    key.append(tokens);
    return key;
  }
  /// Serves a request: finds its prefix, computes the rest, publishes and ends. Returns the number
  /// of tokens found.
  std::int64_t serve(const std::vector<std::int32_t>& tokens,
                     std::span<const Retention> retentions = {}) {
    const PrefixKey wanted = key(tokens);
    const SequenceId id = allocator_.create_with_prefix(wanted);
    const std::int64_t found = allocator_.length(id);
    allocator_.append(id, std::ssize(tokens) - found);
    allocator_.publish(id, wanted, retentions);
    allocator_.erase(id);
    allocator_.verify_integrity();
    return found;
  }
  /// Takes pages for a moment.
  void squeeze(std::int64_t pages) {
    const SequenceId id = allocator_.create();
    allocator_.append(id, pages);
    allocator_.erase(id);
    allocator_.verify_integrity();
  }
  /// Returns the number of tokens in the cache. Counts as a hit, but not as one that matters
  /// afterwards.
  std::int64_t has(const std::vector<std::int32_t>& tokens) {
    const PrefixMatch match = allocator_.match_prefix(key(tokens));
    allocator_.release(match);
    return match.tokens;
  }
  PageAllocator& allocator() { return allocator_; }

 private:
  PageAllocator allocator_;
};

TEST(Eviction, KeepsPagesWithHitsExceptUnderLru) {
  for (const Eviction policy : {Eviction::kHits, Eviction::kTwoQueues, Eviction::kLru,
                                Eviction::kS3Fifo, Eviction::kSegmented}) {
    Cache cache(policy, 3);
    cache.serve({1});
    EXPECT_EQ(cache.serve({1}), 1);
    cache.serve({2});
    cache.serve({3});
    cache.squeeze(1);
    const bool is_lru = policy == Eviction::kLru;
    EXPECT_EQ(cache.has({1}), is_lru ? 0 : 1) << static_cast<int>(policy);
    EXPECT_EQ(cache.has({2}), is_lru ? 1 : 0) << static_cast<int>(policy);
    EXPECT_EQ(cache.has({3}), 1) << static_cast<int>(policy);
  }
}

TEST(Eviction, ReturnedPageIsEvictedLater) {
  for (const Eviction policy : {Eviction::kHits, Eviction::kTwoQueues, Eviction::kS3Fifo}) {
    Cache cache(policy, 3);
    cache.serve({1});
    cache.squeeze(3);
    EXPECT_EQ(cache.serve({1}), 0);
    cache.serve({2});
    cache.serve({3});
    cache.squeeze(1);
    EXPECT_EQ(cache.has({1}), 1) << static_cast<int>(policy);
    EXPECT_EQ(cache.has({2}), 0) << static_cast<int>(policy);
  }
}

// 30 pages come again every 300 requests, by which time as many other pages were in a cache of 100.
TEST(Eviction, LearnsToKeepPagesThatComeAgainLate) {
  std::array<std::int64_t, 2> hits{};
  for (const Eviction policy : {Eviction::kLru, Eviction::kHits}) {
    Cache cache(policy, 100);
    for (std::int32_t request = 0; request < 3000; ++request) {
      const bool again = request % 10 == 0;
      const std::int64_t found = cache.serve({again ? request / 10 % 30 : 100 + request});
      if (request >= 1500) hits[policy == Eviction::kHits] += found;
    }
  }
  EXPECT_EQ(hits[0], 0);
  EXPECT_GT(hits[1], 140);  // of 150
}

// Each request is two pages, then a page that never comes again. The two come again after 20
// requests, whose 60 pages are more than the cache has; without the ends they would be 40.
TEST(Eviction, LearnsThatEndsDoNotComeAgain) {
  std::array<std::int64_t, 2> hits{};
  for (const Eviction policy : {Eviction::kLru, Eviction::kHits}) {
    Cache cache(policy, 50);
    for (std::int32_t request = 0; request < 2000; ++request) {
      const std::int32_t again = request / 40 * 20 + request % 20;  // each twice
      const std::int64_t found = cache.serve({2 * again, 2 * again + 1, 10'000 + request});
      if (request >= 1000) hits[policy == Eviction::kHits] += found;
    }
  }
  EXPECT_LT(hits[0], 50);
  EXPECT_GT(hits[1], 900);  // of 1000
}

TEST(Eviction, EvictsLeavesBeforeParentsOnAnyRank) {
  for (const Eviction policy : {Eviction::kHits, Eviction::kTwoQueues, Eviction::kLru,
                                Eviction::kS3Fifo, Eviction::kSegmented}) {
    Cache cache(policy, 4, 2);
    cache.serve({1, 2, 3, 4, 5});
    cache.serve({1, 2, 7});
    for (std::int64_t left = 4; left <= 8; ++left) {
      cache.squeeze(left);
      const std::int64_t first = cache.has({1, 2, 3, 4, 5}), second = cache.has({1, 2, 7});
      // A run is complete or cut at its end; it never has a hole.
      EXPECT_LE(cache.allocator().cached_pages(), 8 - left);
      EXPECT_EQ(cache.allocator().cached_pages(),
                first + second - std::min<std::int64_t>({first, second, 2}));
    }
    EXPECT_EQ(cache.allocator().cached_pages(), 0);
  }
}

TEST(Eviction, EvictsByPriorityFirst) {
  Cache cache(Eviction::kLru, 3);
  const Retention high{.first = 0, .tokens = 1, .priority = 90};
  const Retention low{.first = 0, .tokens = 1, .priority = 0};
  cache.serve({1}, {&high, 1});
  cache.serve({2});
  cache.serve({3}, {&low, 1});
  cache.squeeze(1);
  EXPECT_EQ(cache.has({3}), 0);
  cache.squeeze(2);
  EXPECT_EQ(cache.has({2}), 0);
  EXPECT_EQ(cache.has({1}), 1);
  cache.serve({4}, {&low, 1});
  cache.serve({4}, {&high, 1});  // raised
  cache.serve({5});
  cache.squeeze(1);
  EXPECT_EQ(cache.has({4}), 1);
  EXPECT_EQ(cache.has({5}), 0);
}

// A page leaves with those before it, so these are kept as long.
TEST(Eviction, KeepsThePagesBeforeOneOfAHighPriority) {
  for (const Eviction policy : kAllEvictions) {
    SCOPED_TRACE(name(policy));
    Cache cache(policy, 8);
    const Retention high{.first = 2, .tokens = 1, .priority = 90};
    const Retention low{.first = 0, .tokens = 1, .priority = 0};
    cache.serve({1, 2, 3, 4}, {&high, 1});
    cache.serve({5}, {&low, 1});
    cache.serve({6, 7, 8}, {&low, 1});  // of no use: its first page leaves last
    cache.squeeze(1);
    EXPECT_EQ(cache.has({5}), 0);
    cache.squeeze(5);
    EXPECT_EQ(cache.has({1, 2, 3, 4}), 3);
    EXPECT_EQ(cache.has({6, 7, 8}), 0);
  }
}

TEST(Eviction, TakesRangesOfAnyLength) {
  constexpr std::int64_t kAll = std::numeric_limits<std::int64_t>::max();
  for (const std::int64_t first : {0, 1}) {
    Cache cache(Eviction::kLru, 4);
    const std::array<Retention, 2> high{{{.first = first, .tokens = kAll, .priority = 90},
                                         {.first = 0, .tokens = 0, .priority = 100}}};
    cache.serve({1, 2}, high);
    cache.serve({3, 4});
    cache.squeeze(2);
    EXPECT_EQ(cache.has({1, 2}), 2) << first;
    EXPECT_EQ(cache.has({3, 4}), 0) << first;
  }
}

TEST(Eviction, ForgetsAPriorityAfterItsOperations) {
  for (const std::int64_t operations : {8, 1000}) {
    Cache cache(Eviction::kLru, 3);
    const Retention high{.first = 0, .tokens = 1, .priority = 90, .operations = operations};
    cache.serve({1}, {&high, 1});  // published by the 3rd operation
    cache.serve({2});
    cache.serve({3});
    cache.squeeze(1);  // {2}, since nothing has ended
    EXPECT_EQ(cache.has({2}), 0);
    EXPECT_EQ(cache.has({3}), 1);
    cache.squeeze(2);
    EXPECT_EQ(cache.has({1}), operations == 8 ? 0 : 1) << "the end makes it newer than {3}";
  }
}

// The publication is the first of the operations; the append that evicts is the eighth.
TEST(Eviction, APriorityLastsForItsOperations) {
  for (const std::int64_t operations : {7, 8}) {
    PageAllocator allocator({.pages_per_rank = 2,
                             .page_size = 1,
                             .prefix = {.enabled = true, .eviction = Eviction::kLru}});
    const Retention low{.first = 0, .tokens = 1, .priority = 0, .operations = operations};
    std::vector<PrefixKey> keys;
    for (const std::int32_t token : {1, 2}) {
      PrefixKey& key = keys.emplace_back(allocator.prefix_rules());
      key.append(std::vector<std::int32_t>{token});
      const SequenceId id = allocator.create();
      allocator.append(id, 1);
      token == 1 ? allocator.publish(id, key, {&low, 1}) : allocator.publish(id, key);
      allocator.erase(id);
    }
    allocator.append(allocator.create(), 1);
    EXPECT_EQ(allocator.cached_tokens(keys[0]), operations == 7 ? 1 : 0);
    EXPECT_EQ(allocator.cached_tokens(keys[1]), operations == 7 ? 0 : 1);
  }
}

TEST(Eviction, KeepsTheLastEndOfEqualPriorities) {
  Cache cache(Eviction::kLru, 2);
  const Retention brief{.first = 0, .tokens = 1, .priority = 90, .operations = 1};
  const Retention lasting{.first = 0, .tokens = 1, .priority = 90};
  cache.serve({1}, {&brief, 1});
  cache.serve({1}, {&lasting, 1});
  cache.serve({2});
  cache.squeeze(1);
  EXPECT_EQ(cache.has({1}), 1);
  cache.serve({3});  // used later than {1}, so that the priority alone decides
  cache.squeeze(1);
  EXPECT_EQ(cache.has({1}), 1);
  EXPECT_EQ(cache.has({3}), 0);
}

// As KeepsThePagesBeforeOneOfAHighPriority, for pages that differ in their ends alone.
TEST(Eviction, KeepsThePagesBeforeOneOfALaterEnd) {
  for (const std::int64_t lasts : {0, 1000}) {
    Cache cache(Eviction::kLru, 4);
    const std::array<Retention, 2> ends{
        {{.first = 0, .tokens = 1, .priority = 90, .operations = 1},
         {.first = 1, .tokens = 1, .priority = 90, .operations = lasts}}};
    cache.serve({1, 2}, ends);
    for (const std::int32_t newer : {3, 4}) {  // the first end has passed
      cache.serve({newer});
      cache.squeeze(2);
    }
    EXPECT_EQ(cache.has({1, 2}), 2) << lasts;
  }
}

TEST(Eviction, ARangeEndsBeforeItsFirstToken) {
  Cache cache(Eviction::kLru, 2);
  const Retention after{.first = 1, .tokens = 1, .priority = 90};
  cache.serve({1}, {&after, 1});  // has no token 1
  cache.serve({2});
  cache.squeeze(1);
  EXPECT_EQ(cache.has({1}), 0);
  EXPECT_EQ(cache.has({2}), 1);
}

// The end of a priority goes with the page: it is not that of whatever comes to the old place.
TEST(Eviction, APriorityEndsAtThePlaceThatItsPageHasMovedTo) {
  for (const std::int64_t operations : {4, 1000}) {
    PageAllocator allocator({.ranks = 2,
                             .pages_per_rank = 2,
                             .page_size = 1,
                             .placement = Placement::kPacked,
                             .prefix = {.enabled = true, .eviction = Eviction::kLru}});
    const auto publish = [&](std::int32_t token, std::span<const Retention> retentions) {
      PrefixKey key(allocator.prefix_rules());
      key.append(std::vector<std::int32_t>{token});
      const SequenceId id = allocator.create();
      allocator.append(id, 1);
      allocator.publish(id, key, retentions);
      allocator.erase(id);
      return key;
    };
    const Retention high{.first = 0, .tokens = 1, .priority = 90, .operations = operations};
    const PrefixKey kept = publish(1, {&high, 1});
    ASSERT_EQ(allocator.start_resize(PageRank{0}, 0).size(), 1u);
    ASSERT_EQ(allocator.finish_moves(), 1);
    const PrefixKey newer = publish(2, {});
    const SequenceId id = allocator.create();
    allocator.append(id, 1);  // ends the priority, and that makes the page the newest
    allocator.erase(id);
    ASSERT_EQ(allocator.cached_tokens(kept), 1);
    ASSERT_EQ(allocator.cached_tokens(newer), 0);
    const PrefixKey newest = publish(3, {});
    allocator.append(allocator.create(), 1);
    EXPECT_EQ(allocator.cached_tokens(kept), operations == 4 ? 0 : 1);
    EXPECT_EQ(allocator.cached_tokens(newest), operations == 4 ? 1 : 0);
    allocator.verify_integrity();
  }
}

TEST(Eviction, NeverTakesAPinnedPageAndFailsAtOnce) {
  Cache cache(Eviction::kHits, 4);
  cache.serve({1, 2, 3});
  const PrefixMatch match = cache.allocator().match_prefix(cache.key({1, 2}));
  const SequenceId large = cache.allocator().create();
  const std::uint64_t digest = cache.allocator().digest();
  EXPECT_FALSE(cache.allocator().try_reserve(large, 3));
  EXPECT_EQ(cache.allocator().digest(), digest);
  EXPECT_TRUE(cache.allocator().try_reserve(large, 2));
  cache.allocator().release(match);
  EXPECT_EQ(cache.has({1, 2, 3}), 2);
}

// The last page of a match may hold another request's tokens after the shared ones.
TEST(PrefixCache, PublishesBeforeTheLastMatchedPageIsCopied) {
  PageAllocator allocator(
      {.ranks = 1, .pages_per_rank = 8, .page_size = 4, .prefix = {.enabled = true}});
  const auto key_of = [&](const std::vector<std::int32_t>& tokens) {
    PrefixKey key(allocator.prefix_rules());
    key.append(tokens);
    return key;
  };
  const PrefixKey one = key_of({1, 2, 3, 4, 5, 6, 7, 8});
  const PrefixKey other = key_of({1, 2, 3, 4, 5, 6, 70, 80});
  const SequenceId first = allocator.create();
  allocator.append(first, 8);
  allocator.publish(first, one);
  const SequenceId second = allocator.create_with_prefix(other);
  ASSERT_EQ(allocator.length(second), 6);
  allocator.publish(second, other);
  allocator.append(second, 2);
  allocator.publish(second, other);
  allocator.erase(first);
  allocator.erase(second);
  allocator.verify_integrity();
  EXPECT_EQ(allocator.match_prefix(other).tokens, 8);
}

// Two chains whose hashes collide: only the tokens distinguish them.
TEST(PrefixCache, ComparesTokensIfRequested) {
  for (const bool compares : {false, true}) {
    PagePools pools(1, 4);
    EvictionLog evictions(4);
    PrefixCache cache({.page_size = 4, .prefix = {.enabled = true, .compares_tokens = compares}},
                      pools, evictions);
    PrefixKey key(PrefixRules{.page_size = 4});
    key.append(std::vector<std::int32_t>{1, 2, 3, 4});
    cache.prepare(Retention::kPriority);
    cache.publish(pools.take(PageRank{0}), key.hashes()[0], {},
                  std::vector<std::int32_t>{1, 2, 3, 5}, false, {});
    EXPECT_EQ(cache.find(key, 100).tokens, compares ? 0 : 4);
  }
}

}  // namespace
}  // namespace kvmesh
