// The places of the pages of known prefixes: their ranks, and the pages that a drain keeps.
#include <gtest/gtest.h>

#include <algorithm>
#include <span>
#include <vector>

#include "kvmesh/allocator.hpp"

namespace kvmesh {
namespace {

using Tokens = std::vector<std::int32_t>;

constexpr int kTokensPerPage = 4;

constexpr int kManyRanks = 4;

AllocatorOptions with_prefixes(std::int64_t pages_per_rank, std::int64_t home_threshold_tokens) {
  return {.ranks = kManyRanks,
          .pages_per_rank = pages_per_rank,
          .page_size = kTokensPerPage,
          .home_threshold_tokens = home_threshold_tokens,
          .prefix = {.enabled = true, .hash = PrefixHash::kXxh3}};
}

/// Requests that all begin with one short prompt have their homes on all ranks nevertheless.
TEST(PrefixPlacement, ACommonPromptDoesNotBringAllToItsRank) {
  PageAllocator allocator(with_prefixes(400, 80));
  const Tokens common(16, 7);
  for (std::int32_t request = 0; request < 40; ++request) {
    PrefixKey key(allocator.prefix_rules());
    key.append(common);
    key.append(Tokens(64, 100 + request));
    const SequenceId id = allocator.create_with_prefix(key);
    ASSERT_EQ(allocator.length(id), request == 0 ? 0 : 16);
    allocator.append(id, 80 - allocator.length(id));
    allocator.publish(id, key);
    // The pages behind the prefix are on one rank.
    const std::span<const PageId> own = allocator.pages(id).subspan(4);
    for (const PageId page : own) ASSERT_EQ(page.rank(), own.front().rank());
  }
  for (PageRank rank{0}; rank.value < kManyRanks; ++rank.value) {
    const std::int64_t held = 400 - allocator.free_pages(rank);
    EXPECT_NEAR(static_cast<double>(held), (4 + 40 * 16) / 4.0, 20);
  }
  allocator.verify_integrity();
}

/// Requests that come one after another, and begin alike: no rank evicts while others have room.
TEST(PrefixPlacement, CachedPagesSpreadOverAllRanks) {
  PageAllocator allocator(with_prefixes(100, 16));
  for (std::int32_t request = 0; request < 60; ++request) {
    PrefixKey key(allocator.prefix_rules());
    key.append(Tokens(kTokensPerPage, 7));
    key.append(
        Tokens(static_cast<std::size_t>(request % 3 == 0 ? 10 : 5) * kTokensPerPage, request));
    const SequenceId id = allocator.create_with_prefix(key);
    allocator.append(id, std::ssize(key.tokens()) - allocator.length(id));
    allocator.publish(id, key);
    allocator.erase(id);
    if (allocator.cached_pages() > 330) break;
  }
  EXPECT_GT(allocator.cached_pages(), 330);
  EXPECT_EQ(allocator.evicted_pages(), 0);
  for (PageRank rank{0}; rank.value < kManyRanks; ++rank.value)
    EXPECT_NEAR(static_cast<double>(allocator.cached_pages(rank)),
                static_cast<double>(allocator.cached_pages()) / kManyRanks, 12);
}

/// Serves a request alone, which is cached if `publishes`. Returns the rank of its last page.
PageRank serve(PageAllocator& allocator, const Tokens& tokens, bool publishes) {
  PrefixKey key(allocator.prefix_rules());
  key.append(tokens);
  const SequenceId id = allocator.create_with_prefix(key);
  allocator.append(id, std::ssize(tokens) - allocator.length(id));
  const PageRank rank = allocator.pages(id).back().rank();
  if (publishes) allocator.publish(id, key);
  allocator.erase(id);
  allocator.verify_integrity();
  return rank;
}

/// Two ranks can hand out, and have handed out, as many pages; one of them would evict for its.
TEST(PrefixPlacement, UnusedPagesAreTakenBeforeCachedOnes) {
  AllocatorOptions options = with_prefixes(64, 16);
  options.ranks = 2;
  const Tokens cached(16, 1), dropped(16, 2), next(16, 3);
  for (const bool begins_alike : {false, true}) {
    PageAllocator allocator(options);
    ASSERT_EQ(serve(allocator, cached, true), PageRank{0});
    ASSERT_EQ(serve(allocator, dropped, false), PageRank{1});
    // The second one begins with a cached page, which is on the first rank.
    Tokens tokens = next;
    if (begins_alike) std::ranges::fill(std::span(tokens).first(kTokensPerPage), 1);
    EXPECT_EQ(serve(allocator, tokens, true), PageRank{1}) << begins_alike;
  }
}

/// A whole home of the prefix's rank counts for more than unused pages that are few for the pool.
TEST(PrefixPlacement, APrefixKeepsItsHomeForFewUnusedPages) {
  AllocatorOptions options = with_prefixes(4 * 64, 16);
  options.ranks = 2;
  PageAllocator allocator(options);
  ASSERT_EQ(serve(allocator, Tokens(16, 1), true), PageRank{0});
  ASSERT_EQ(serve(allocator, Tokens(16, 2), false), PageRank{1});
  Tokens tokens(16, 3);
  std::ranges::fill(std::span(tokens).first(kTokensPerPage), 1);
  EXPECT_EQ(serve(allocator, tokens, true), PageRank{0});
}

/// The home is chosen when the sequence takes its first page behind the prefix, and not anew when
/// the rank is crowded later: its combine would move rows then.
TEST(PrefixPlacement, ASequenceWithAPrefixChoosesItsHomeOnce) {
  AllocatorOptions options = with_prefixes(64, 32);
  options.ranks = 2;
  PageAllocator allocator(options);
  ASSERT_EQ(serve(allocator, Tokens(16, 1), true), PageRank{0});
  PrefixKey key(allocator.prefix_rules());
  key.append(Tokens(kTokensPerPage, 1));
  const SequenceId id = allocator.create_with_prefix(key);
  allocator.append(id, kTokensPerPage);
  const PageRank home = allocator.pages(id).back().rank();
  std::vector<SequenceId> others;
  for (int i = 0; i < 16; ++i) {
    others.push_back(allocator.create());
    allocator.append(others.back(), 4 * kTokensPerPage);
  }
  for (const SequenceId other : others)
    if (allocator.pages(other)[0].rank() != home) allocator.erase(other);
  ASSERT_GT(allocator.free_pages(PageRank{1 - home.value}), allocator.free_pages(home) + 8);
  allocator.append(id, kTokensPerPage);
  EXPECT_EQ(allocator.pages(id).back().rank(), home);
}

/// Pages that are brought back without a home leave the homes' pages to those that have one.
TEST(PrefixPlacement, PagesComeBackAtTheirHomes) {
  AllocatorOptions options = with_prefixes(4, 1000);
  options.placement = Placement::kPacked;
  PageAllocator packed(options);
  packed.append(packed.create(), 3 * kTokensPerPage);  // one page of rank 0 is left
  PrefixKey key(packed.prefix_rules());
  key.append(Tokens(2 * kTokensPerPage, 5));
  const std::vector<PageRank> homes{PageRank{-1}, PageRank{0}};
  const PrefixMatch match = packed.bring_back(key, 2, homes);
  EXPECT_EQ(packed.pages(match.pin)[0].rank(), PageRank{1});
  EXPECT_EQ(packed.pages(match.pin)[1].rank(), PageRank{0});

  // The sequence goes on where its pages have come back.
  PageAllocator balanced(with_prefixes(4 * 64, 1000));
  const PrefixMatch far = balanced.bring_back(key, 2, std::vector<PageRank>(2, PageRank{2}));
  const SequenceId id = balanced.create_with_prefix(far);
  balanced.append(id, kTokensPerPage);
  EXPECT_EQ(balanced.pages(id).back().rank(), PageRank{2});
}

/// Serves requests of 8 pages of their own each. Returns how many of their pages are cached.
std::int64_t cached_of(PageAllocator& allocator, std::int32_t requests, bool serves) {
  std::int64_t pages = 0;
  for (std::int32_t request = 0; request < requests; ++request) {
    PrefixKey key(allocator.prefix_rules());
    key.append(Tokens(8 * kTokensPerPage, request));
    pages += allocator.cached_tokens(key) / kTokensPerPage;
    if (!serves) continue;
    const SequenceId id = allocator.create();
    allocator.append(id, 8 * kTokensPerPage);
    allocator.publish(id, key);
    allocator.erase(id);
  }
  return pages;
}

TEST(PrefixPlacement, ADrainKeepsWhatThereIsRoomFor) {
  for (const bool is_full : {false, true}) {
    PageAllocator allocator(with_prefixes(100, 16));
    const std::int32_t requests = is_full ? 60 : 35;  // of 8 pages, in 400
    cached_of(allocator, requests, true);
    const std::int64_t before = allocator.cached_pages();
    EXPECT_EQ(before, is_full ? 400 : 280);
    for (const bool cancels : {true, false}) {
      const std::vector<PageCopy> copies = allocator.start_resize(PageRank{2}, 0);
      allocator.verify_integrity();
      EXPECT_GE(std::ssize(copies), is_full ? 50 : 60);
      cancels ? allocator.cancel_moves() : static_cast<void>(allocator.finish_moves());
      allocator.verify_integrity();
    }
    EXPECT_GE(allocator.cached_pages(), is_full ? 270 : 280);
    EXPECT_EQ(cached_of(allocator, requests, false), allocator.cached_pages()) << "all are found";
    EXPECT_EQ(allocator.cached_pages(PageRank{2}), 0);
  }
}

}  // namespace
}  // namespace kvmesh
