// A match has no page whose content may be another's: items of other modalities behind equal
// placeholder tokens, hashes that collide, and sequences that go on with other tokens.
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "allocator/prefix/page_hasher.hpp"
#include "allocator/prefix/prefix_cache.hpp"
#include "kvmesh/allocator.hpp"

namespace kvmesh {
namespace {

constexpr int kExactPage = 4;

std::vector<std::int32_t> counted(std::size_t tokens) {
  std::vector<std::int32_t> list(tokens);
  std::iota(list.begin(), list.end(), 1);
  return list;
}

PrefixKey exact_key(const PageAllocator& allocator, std::size_t tokens,
                    const PrefixExtras& extras = {}) {
  PrefixKey key(allocator.prefix_rules(), extras);
  key.append(counted(tokens));
  return key;
}

/// An allocator in which the key's pages are cached.
PageAllocator with_cached(const PrefixExtras& extras, std::int64_t window = 0) {
  PageAllocator allocator({.pages_per_rank = 8,
                           .page_size = kExactPage,
                           .prefix = {.enabled = true},
                           .window = window});
  const PrefixKey key = exact_key(allocator, 2 * kExactPage, extras);
  const SequenceId id = allocator.create();
  allocator.append(id, 2 * kExactPage);
  allocator.publish(id, key);
  allocator.erase(id);
  return allocator;
}

/// The second page has an item on one side: its placeholder tokens are no proof of equal content.
TEST(ExactMatches, EndBeforeAPageWithAnItemOfEitherSide) {
  const PrefixExtras item{.items = {{.id = "image", .first = 5, .tokens = 2}}};
  PageAllocator plain = with_cached({});
  EXPECT_EQ(plain.cached_tokens(exact_key(plain, 7)), 7) << "a page matches in part";
  EXPECT_EQ(plain.cached_tokens(exact_key(plain, 7, item)), 4);
  PageAllocator pictured = with_cached(item);
  EXPECT_EQ(pictured.cached_tokens(exact_key(pictured, 8, item)), 8);
  EXPECT_EQ(pictured.cached_tokens(exact_key(pictured, 7)), 4);
}

/// An item that ends where a page begins, or begins where it ends, is not on the page.
TEST(ExactMatches, AnItemIsOnThePagesThatItOverlapsAlone) {
  for (const std::int64_t first : {0, 8}) {
    const PrefixExtras beside{.items = {{.id = "image", .first = first, .tokens = 4}}};
    const PrefixKey key(PrefixRules{.page_size = kExactPage}, beside);
    EXPECT_FALSE(key.has_items(1)) << first;
    EXPECT_TRUE(key.has_items(first / kExactPage)) << first;
    EXPECT_EQ(extra_keys(beside, kExactPage, kExactPage), std::vector<std::uint8_t>{}) << first;
  }
}

/// Hashes that collide with those of other tokens, where a match is looked for from its end.
TEST(ExactMatches, CompareTokensOfWindowsAndStates) {
  for (const bool has_states : {false, true})
    for (const bool compares : {false, true}) {
      AllocatorOptions options{.pages_per_rank = 4,
                               .page_size = kExactPage,
                               .prefix = {.enabled = true, .compares_tokens = compares}};
      has_states ? options.state_interval = kExactPage : options.window = kExactPage;
      PagePools pools(1, 4);
      EvictionLog evictions(4);
      PrefixCache cache(options, pools, evictions);
      PrefixKey key(PrefixRules{.page_size = kExactPage});
      key.append(counted(kExactPage));
      cache.prepare(Retention::kPriority);
      cache.publish(pools.take(PageRank{0}), key.hashes()[0], {},
                    std::vector<std::int32_t>{1, 2, 3, 5}, false, {});
      EXPECT_EQ(cache.find(key, 100).tokens, compares ? 0 : 4) << has_states;
    }
}

/// The query after 8 tokens sees positions 0 to 7 of a window of 9: two pages, and no third one.
TEST(ExactMatches, OfAWindowNeedNoPageThatTheQueryDoesNotSee) {
  PageAllocator allocator(
      {.pages_per_rank = 8, .page_size = kExactPage, .prefix = {.enabled = true}, .window = 9});
  const PrefixKey key = exact_key(allocator, 5 * kExactPage);
  const SequenceId id = allocator.create();
  allocator.append(id, 5 * kExactPage);
  allocator.slide_window(id, 5 * kExactPage);  // sees positions 12 to 19
  ASSERT_EQ(allocator.released_pages(id), 3);
  allocator.publish(id, key);
  EXPECT_EQ(allocator.cached_tokens(key), 5 * kExactPage);
}

TEST(ExactMatches, RefuseToPublishOtherTokensThanBefore) {
  PageAllocator allocator(
      {.pages_per_rank = 8, .page_size = kExactPage, .prefix = {.enabled = true}});
  const SequenceId id = allocator.create();
  allocator.append(id, 2 * kExactPage);
  allocator.publish(id, exact_key(allocator, 2 * kExactPage));
  const std::uint64_t digest = allocator.digest();
  PrefixKey other(allocator.prefix_rules());
  other.append(std::vector<std::int32_t>(2 * kExactPage, 7));
  EXPECT_THROW(allocator.check_publish(id, other), InvalidArgument);
  EXPECT_THROW(allocator.publish(id, other), InvalidArgument);
  EXPECT_EQ(allocator.digest(), digest);
  EXPECT_EQ(allocator.cached_tokens(other), 0);
}

}  // namespace
}  // namespace kvmesh
