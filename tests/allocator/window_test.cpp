// Pages behind a window: those that are given up, and the sequences that still hold them.
#include <gtest/gtest.h>

#include <numeric>

#include "kvmesh/allocator.hpp"

namespace kvmesh {
namespace {

constexpr int kWindowPage = 4;
constexpr std::int64_t kWindow = 10;

AllocatorOptions options(int ranks = 1, bool prefix = false) {
  return {.ranks = ranks,
          .pages_per_rank = 40,
          .page_size = kWindowPage,
          .prefix = {.enabled = prefix},
          .window = kWindow};
}

std::vector<std::int32_t> tokens(std::size_t count) {
  std::vector<std::int32_t> list(count);
  std::iota(list.begin(), list.end(), 1);
  return list;
}

PrefixKey key_of(const PageAllocator& allocator, std::size_t count) {
  PrefixKey key(allocator.prefix_rules());
  key.append(tokens(count));
  return key;
}

TEST(AllocatorWindow, GivesUpWholePagesThatNoQuerySees) {
  PageAllocator allocator(options());
  const SequenceId id = allocator.create();
  static_cast<void>(allocator.append(id, 30));
  const std::uint64_t version = allocator.version(id), digest = allocator.digest();
  allocator.slide_window(id, 12);  // sees from position 3
  EXPECT_EQ(allocator.released_pages(id), 0);
  EXPECT_EQ(allocator.version(id), version);
  EXPECT_EQ(allocator.digest(), digest);
  allocator.slide_window(id, 13);  // sees from position 4
  EXPECT_EQ(allocator.released_pages(id), 1);
  EXPECT_NE(allocator.version(id), version);
  EXPECT_NE(allocator.digest(), digest);
  allocator.slide_window(id, 30);  // sees from position 21
  EXPECT_EQ(allocator.released_pages(id), 5);
  EXPECT_EQ(allocator.free_pages(), 40 - 3);
  EXPECT_EQ(allocator.capacity(id), 32);
  EXPECT_FALSE(allocator.pages(id)[4].valid());
  EXPECT_TRUE(allocator.pages(id)[5].valid());
  allocator.slide_window(id, 13);  // what is given up stays so
  EXPECT_EQ(allocator.released_pages(id), 5);
  allocator.verify_integrity();
}

TEST(AllocatorWindow, RefusesToGoBackBehindIt) {
  PageAllocator allocator(options());
  const SequenceId id = allocator.create();
  static_cast<void>(allocator.append(id, 30));
  allocator.slide_window(id, 26);  // sees from position 17
  const std::uint64_t digest = allocator.digest();
  EXPECT_THROW(allocator.truncate(id, 24), InvalidArgument);
  EXPECT_THROW(allocator.slide_window(id, 31), InvalidArgument);
  EXPECT_EQ(allocator.digest(), digest);
  allocator.truncate(id, 25);  // the next query sees from position 16
  allocator.verify_integrity();
  allocator.truncate(id, 0);
  EXPECT_EQ(allocator.released_pages(id), 0);
  EXPECT_EQ(allocator.free_pages(), 40);
  PageAllocator without({.pages_per_rank = 4});
  EXPECT_THROW(without.slide_window(without.create(), 0), InvalidArgument);
}

/// As an import does of a stream that begins within a page.
TEST(AllocatorWindow, MayBeginWithinAPage) {
  PageAllocator allocator(options());
  const SequenceId id = allocator.create();
  static_cast<void>(allocator.append(id, 30));
  allocator.give_up_before(id, 18);
  EXPECT_EQ(allocator.first_kept(id), 18);
  EXPECT_EQ(allocator.released_pages(id), 4);
  const std::uint64_t digest = allocator.digest();
  allocator.give_up_before(id, 17);  // what is given up stays so
  allocator.slide_window(id, 26);    // sees from position 17
  EXPECT_EQ(allocator.digest(), digest);
  EXPECT_THROW(allocator.give_up_before(id, 31), InvalidArgument);
  EXPECT_THROW(allocator.truncate(id, 26), InvalidArgument);
  const SequenceId child = allocator.fork(id);
  EXPECT_EQ(allocator.first_kept(child), 18);
  EXPECT_THROW(allocator.truncate(child, 26), InvalidArgument);
  allocator.truncate(child, 27);  // the next query sees from position 18
  allocator.verify_integrity();
  const std::uint64_t version = allocator.version(id);
  allocator.give_up_before(id, 19);
  EXPECT_NE(allocator.version(id), version);
  EXPECT_NE(allocator.digest(), digest);
  allocator.slide_window(id, 30);  // sees from position 21
  EXPECT_EQ(allocator.first_kept(id), 20);
  allocator.give_up_before(id, 30);
  allocator.verify_integrity();
  allocator.truncate(id, 0);
  EXPECT_EQ(allocator.first_kept(id), 0);
  PageAllocator without({.pages_per_rank = 4});
  EXPECT_THROW(without.give_up_before(without.create(), 0), InvalidArgument);
}

TEST(AllocatorWindow, PublishesNoPageWithoutItsFirstTokens) {
  PageAllocator allocator(options(1, true));
  const SequenceId id = allocator.create();
  static_cast<void>(allocator.append(id, 28));
  allocator.give_up_before(id, 17);
  allocator.publish(id, key_of(allocator, 28));  // the next query sees from position 19
  EXPECT_EQ(allocator.published_pages().size(), 0u);
  EXPECT_EQ(allocator.first_kept(id), 17);
  static_cast<void>(allocator.append(id, 1));
  allocator.publish(id, key_of(allocator, 29));  // from 20, where the next page begins
  EXPECT_EQ(allocator.first_kept(id), 20);
  EXPECT_EQ(allocator.published_pages().size(), 2u);
  EXPECT_EQ(allocator.cached_tokens(key_of(allocator, 29)), 0) << "its first query sees from 19";
  static_cast<void>(allocator.append(id, 3));
  allocator.publish(id, key_of(allocator, 32));
  EXPECT_EQ(allocator.cached_tokens(key_of(allocator, 32)), 32);
  allocator.verify_integrity();
}

TEST(AllocatorWindow, LeavesPagesToForks) {
  PageAllocator allocator(options());
  const SequenceId parent = allocator.create();
  static_cast<void>(allocator.append(parent, 30));
  const SequenceId child = allocator.fork(parent);
  const PageId first = allocator.pages(parent)[0];
  allocator.slide_window(parent, 30);
  EXPECT_EQ(allocator.reference_count(first), 1);
  EXPECT_EQ(allocator.free_pages(), 40 - 8);
  const SequenceId grandchild = allocator.fork(parent);
  EXPECT_EQ(allocator.released_pages(grandchild), 5);
  allocator.erase(parent);
  allocator.slide_window(child, 30);
  EXPECT_EQ(allocator.reference_count(first), 0);
  EXPECT_EQ(allocator.make_writable(child, 0, 30).size(), 3u) << "what is given up is not copied";
  allocator.verify_integrity();
  allocator.erase(child);
  allocator.erase(grandchild);
  EXPECT_EQ(allocator.free_pages(), 40);
}

TEST(AllocatorWindow, StaysAtHomeBelowTheThreshold) {
  AllocatorOptions spread = options(3);
  spread.home_threshold_tokens = 16;
  PageAllocator allocator(spread);
  const SequenceId id = allocator.create();
  for (int i = 0; i < 60; ++i) {
    static_cast<void>(allocator.append(id, 1));
    allocator.slide_window(id, allocator.length(id) - 1);
  }
  const std::span<const PageId> pages = allocator.pages(id);
  for (std::int64_t i = allocator.released_pages(id); i < std::ssize(pages); ++i) {
    EXPECT_EQ(pages[static_cast<std::size_t>(i)].rank(), pages.back().rank());
  }
  allocator.verify_integrity();
}

TEST(AllocatorWindow, MatchesAPrefixByThePagesThatTheNextQuerySees) {
  PageAllocator allocator(options(1, true));
  const SequenceId id = allocator.create();
  static_cast<void>(allocator.append(id, 38));
  allocator.slide_window(id, 26);  // pages 4 to 9 are left
  allocator.publish(id, key_of(allocator, 38));
  allocator.verify_integrity();
  EXPECT_EQ(allocator.cached_tokens(key_of(allocator, 100)), 36) << "whole pages";
  EXPECT_EQ(allocator.cached_tokens(key_of(allocator, 31)), 28) << "pages 4 to 6 are enough";
  EXPECT_EQ(allocator.cached_tokens(key_of(allocator, 27)), 0) << "page 3 is gone";
  EXPECT_EQ(allocator.cached_tokens(key_of(allocator, 100), 35), 32);

  const PrefixMatch match = allocator.match_prefix(key_of(allocator, 100));
  const SequenceId second = allocator.create_with_prefix(match);
  EXPECT_EQ(allocator.length(second), 36);
  EXPECT_EQ(allocator.released_pages(second), 6);
  const PageId page = allocator.pages(second)[8];
  EXPECT_EQ(allocator.reference_count(page), 2);
  allocator.verify_integrity();

  // The pages that neither sees are cached; and evicted, each alone, when room is needed.
  static_cast<void>(allocator.append(id, 20));
  allocator.slide_window(id, 58);
  EXPECT_EQ(allocator.reference_count(page), 1);
  EXPECT_EQ(allocator.cached_pages(), 2) << "pages 4 and 5";
  allocator.slide_window(second, 36);
  allocator.verify_integrity();
  const SequenceId third = allocator.create();
  static_cast<void>(allocator.append(third, allocator.free_pages() * kWindowPage));
  EXPECT_EQ(allocator.cached_pages(), 0);
  EXPECT_EQ(allocator.reference_count(page), 1);
  allocator.verify_integrity();
}

}  // namespace
}  // namespace kvmesh
