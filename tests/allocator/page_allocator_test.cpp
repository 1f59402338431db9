#include "kvmesh/allocator.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace kvmesh {
namespace {

constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();

TEST(PageAllocator, RejectsInvalidOptions) {
  const auto refused = [](AllocatorOptions options) {
    EXPECT_THROW(PageAllocator{options}, InvalidArgument);
  };
  refused({.ranks = 0, .pages_per_rank = 4});
  refused({.ranks = PageId::kMaxRanks + 1, .pages_per_rank = 4});
  refused({.ranks = 1, .pages_per_rank = 0});
  refused({.ranks = 1, .pages_per_rank = PageId::kMaxPagesPerRank + 1});
  refused({.ranks = 1, .pages_per_rank = 4, .page_size = 0});
  refused({.ranks = 1, .pages_per_rank = 4, .home_threshold_tokens = -1});
  refused({.ranks = 1, .pages_per_rank = 4, .placement = static_cast<Placement>(9)});
}

TEST(PageAllocator, RefusesCallsWhenItWasMovedFrom) {
  PageAllocator from({.ranks = 2, .pages_per_rank = 4});
  const SequenceId id = from.create();
  PageAllocator to(std::move(from));
  EXPECT_TRUE(to.contains(id));
  EXPECT_THROW(from.create(), InvalidArgument);
  EXPECT_THROW(static_cast<void>(from.free_pages(PageRank{0})), InvalidArgument);
  EXPECT_THROW(static_cast<void>(from.digest()), InvalidArgument);
  EXPECT_THROW(from.verify_integrity(), InvalidArgument);
  from = std::move(to);
  EXPECT_NO_THROW(from.append(id, 3));
}

TEST(PageAllocator, CapacityGrowsByWholePagesAndLengthByTokens) {
  PageAllocator allocator({.ranks = 2, .pages_per_rank = 8, .page_size = 4});
  const SequenceId id = allocator.create();
  EXPECT_EQ(allocator.capacity(id), 0);
  allocator.reserve(id, 5);
  EXPECT_EQ(allocator.capacity(id), 8);
  EXPECT_EQ(allocator.length(id), 0);
  allocator.reserve(id, 3);  // less than it has
  EXPECT_EQ(allocator.capacity(id), 8);
  allocator.append(id, 8);
  EXPECT_EQ(allocator.free_pages(), 14);
  allocator.append(id, 1);
  EXPECT_EQ(allocator.capacity(id), 12);
  EXPECT_EQ(allocator.length(id), 9);
  EXPECT_EQ(allocator.pages(id).size(), 3u);
}

TEST(PageAllocator, OutOfPagesReportsCounts) {
  PageAllocator allocator({.ranks = 2, .pages_per_rank = 3, .page_size = 4});
  const SequenceId id = allocator.create();
  allocator.append(id, 6);
  try {
    allocator.append(id, 100);
    FAIL() << "100 tokens do not fit";
  } catch (const OutOfPages& error) {
    EXPECT_EQ(error.asked_pages(), 25);  // 106 tokens are 27 pages, 2 are there
    EXPECT_EQ(error.free_pages(), 4);
    ASSERT_EQ(error.free_pages_per_rank().size(), 2u);
    EXPECT_EQ(error.free_pages_per_rank()[0] + error.free_pages_per_rank()[1], 4);
    EXPECT_NE(std::string(error.what()).find("25"), std::string::npos);
  }
  EXPECT_EQ(allocator.length(id), 6);
}

TEST(PageAllocator, CountsHugeRequestsWithoutOverflow) {
  for (int page_size : {1, 7, 16}) {
    PageAllocator allocator({.ranks = 1, .pages_per_rank = 4, .page_size = page_size});
    const SequenceId id = allocator.create();
    const SequenceId other = allocator.create();
    allocator.append(id, 2 * page_size);
    const auto asked = [](const std::function<void()>& operation) {
      try {
        operation();
      } catch (const OutOfPages& error) {
        return error.asked_pages();
      }
      return std::int64_t{-1};
    };
    const std::int64_t pages = kHuge / page_size + (kHuge % page_size != 0);
    EXPECT_EQ(asked([&] { allocator.append(id, kHuge); }), pages);
    EXPECT_EQ(asked([&] { allocator.reserve(id, kHuge); }), pages - 2);
    const std::vector<AppendRequest> both{{id, kHuge}, {other, kHuge}};
    EXPECT_EQ(asked([&] { allocator.append(both); }), page_size == 1 ? kHuge : 2 * pages);
    EXPECT_EQ(allocator.try_reserve(id, kHuge).reason().asked_pages(), pages - 2);
    EXPECT_EQ(allocator.try_append(both).reason().free_pages(), 2);
    EXPECT_EQ(allocator.free_pages(), 2);
    allocator.verify_integrity();
  }
}

TEST(PageAllocator, AppendsABatchWholeOrNotAtAll) {
  PageAllocator allocator({.ranks = 2, .pages_per_rank = 2, .page_size = 4});
  const SequenceId a = allocator.create();
  const SequenceId b = allocator.create();
  const std::uint64_t digest = allocator.digest();
  EXPECT_THROW(allocator.append(std::vector<AppendRequest>{{a, 8}, {b, 12}}), OutOfPages);
  EXPECT_THROW(allocator.append(std::vector<AppendRequest>{{a, 4}, {a, 4}}), InvalidArgument);
  EXPECT_THROW(allocator.append(std::vector<AppendRequest>{{a, 4}, {b, -1}}), InvalidArgument);
  EXPECT_THROW(allocator.append(std::vector<AppendRequest>{{a, 4}, {SequenceId{99}, 1}}),
               UnknownSequence);
  EXPECT_EQ(allocator.digest(), digest);
  EXPECT_EQ(allocator.length(a), 0);
  EXPECT_EQ(allocator.free_pages(), 4);
  // A sequence of a batch that failed may come again.
  EXPECT_TRUE(allocator.append(std::vector<AppendRequest>{{a, 8}, {b, 8}}).empty());
}

TEST(PageAllocator, ForkSharesContentAndCopiesTheLastPageOnWrite) {
  PageAllocator allocator({.ranks = 1, .pages_per_rank = 8, .page_size = 4});
  const SequenceId parent = allocator.create();
  allocator.append(parent, 6);
  allocator.reserve(parent, 16);
  const SequenceId child = allocator.fork(parent);
  EXPECT_EQ(allocator.length(child), 6);
  EXPECT_EQ(allocator.capacity(child), 8) << "what is only reserved is not shared";
  EXPECT_EQ(allocator.free_pages(), 4);
  const PageId full = allocator.pages(parent)[0];
  const PageId partial = allocator.pages(parent)[1];
  EXPECT_EQ(allocator.reference_count(full), 2);
  EXPECT_EQ(allocator.reference_count(partial), 2);
  EXPECT_EQ(allocator.reference_count(allocator.pages(parent)[2]), 1);

  const std::vector<PageCopy> copies = allocator.append(child, 3);
  ASSERT_EQ(copies.size(), 1u);
  EXPECT_EQ(copies[0], (PageCopy{partial, allocator.pages(child)[1], 2}));
  EXPECT_EQ(allocator.reference_count(partial), 1);
  EXPECT_EQ(allocator.pages(child)[0], full);
  EXPECT_TRUE(allocator.append(parent, 1).empty()) << "the page is the parent's alone by now";
  allocator.verify_integrity();
}

TEST(PageAllocator, ForkingAtAPageBoundaryNeverCopies) {
  PageAllocator allocator({.ranks = 1, .pages_per_rank = 4, .page_size = 4});
  const SequenceId parent = allocator.create();
  allocator.append(parent, 8);
  const SequenceId child = allocator.fork(parent);
  EXPECT_TRUE(allocator.append(child, 1).empty());
  EXPECT_TRUE(allocator.append(parent, 1).empty());
}

TEST(PageAllocator, LastSharerOfABatchKeepsThePage) {
  PageAllocator allocator({.ranks = 1, .pages_per_rank = 3, .page_size = 4});
  const SequenceId a = allocator.create();
  allocator.append(a, 1);
  const PageId page = allocator.pages(a)[0];
  const SequenceId b = allocator.fork(a);
  const SequenceId c = allocator.fork(a);
  // Three sharers, two free pages: enough only because one of the three copies is not needed.
  const auto copies = allocator.append(std::vector<AppendRequest>{{b, 1}, {a, 1}, {c, 1}});
  ASSERT_EQ(copies.size(), 2u);
  EXPECT_EQ(copies[0], (PageCopy{page, allocator.pages(b)[0], 1}));
  EXPECT_EQ(copies[1], (PageCopy{page, allocator.pages(a)[0], 1}));
  EXPECT_EQ(allocator.pages(c)[0], page);
  EXPECT_EQ(allocator.free_pages(), 0);
  allocator.verify_integrity();
}

TEST(PageAllocator, CopiesCountAsRequestedPages) {
  PageAllocator allocator({.ranks = 1, .pages_per_rank = 2, .page_size = 4});
  const SequenceId a = allocator.create();
  allocator.append(a, 5);
  const SequenceId b = allocator.fork(a);
  try {
    allocator.append(b, 4);
    FAIL() << "a copy and a new page do not fit";
  } catch (const OutOfPages& error) {
    EXPECT_EQ(error.asked_pages(), 2);
    EXPECT_EQ(error.free_pages(), 0);
  }
  EXPECT_EQ(allocator.pages(b)[1], allocator.pages(a)[1]);
  allocator.erase(a);
  EXPECT_TRUE(allocator.append(b, 3).empty());
}

TEST(PageAllocator, MakesPositionsWritable) {
  PageAllocator allocator({.ranks = 1, .pages_per_rank = 8, .page_size = 4});
  const SequenceId a = allocator.create();
  allocator.append(a, 10);
  const std::vector<PageId> before(allocator.pages(a).begin(), allocator.pages(a).end());
  const SequenceId b = allocator.fork(a);
  EXPECT_TRUE(allocator.make_writable(b, 3, 3).empty());
  const auto copies = allocator.make_writable(b, 5, 9);
  ASSERT_EQ(copies.size(), 2u);
  EXPECT_EQ(copies[0], (PageCopy{before[1], allocator.pages(b)[1], 4}));
  EXPECT_EQ(copies[1], (PageCopy{before[2], allocator.pages(b)[2], 2}));
  EXPECT_EQ(allocator.pages(b)[0], before[0]);
  EXPECT_TRUE(allocator.make_writable(b, 5, 9).empty()) << "they are its own now";
  EXPECT_TRUE(allocator.make_writable(a, 4, 12).empty()) << "and the other's too";
  EXPECT_THROW(allocator.make_writable(a, 0, 13), InvalidArgument);
  EXPECT_THROW(allocator.make_writable(a, -1, 2), InvalidArgument);
  EXPECT_THROW(allocator.make_writable(a, 3, 2), InvalidArgument);
  allocator.verify_integrity();
}

TEST(PageAllocator, TruncateFreesPagesPastTheLength) {
  PageAllocator allocator({.ranks = 1, .pages_per_rank = 8, .page_size = 4});
  const SequenceId a = allocator.create();
  allocator.append(a, 10);
  allocator.reserve(a, 24);
  EXPECT_THROW(allocator.truncate(a, 11), InvalidArgument);
  EXPECT_THROW(allocator.truncate(a, -1), InvalidArgument);
  allocator.truncate(a, 10);
  EXPECT_EQ(allocator.capacity(a), 12) << "pages that were only reserved go too";
  allocator.truncate(a, 4);
  EXPECT_EQ(allocator.capacity(a), 4);
  EXPECT_EQ(allocator.length(a), 4);
  allocator.truncate(a, 0);
  EXPECT_EQ(allocator.free_pages(), 8);
  allocator.append(a, 1);
  allocator.verify_integrity();
}

/// Plans compare versions: a change that is none would make them stale.
TEST(PageAllocator, KeepsTheVersionOfASequenceThatDoesNotChange) {
  PageAllocator allocator({.pages_per_rank = 8, .page_size = 4});
  const SequenceId id = allocator.create(), other = allocator.create();
  allocator.append(id, 6);
  const std::uint64_t version = allocator.version(id);
  allocator.append(id, 0);
  allocator.truncate(id, 6);
  allocator.reserve(id, 12);
  allocator.append(other, 6);
  allocator.erase(allocator.fork(id));
  EXPECT_EQ(allocator.version(id), version);
  allocator.truncate(id, 5);
  EXPECT_NE(allocator.version(id), version);
}

TEST(PageAllocator, RejectsStaleIdsInEveryCall) {
  PageAllocator allocator({.ranks = 1, .pages_per_rank = 8});
  const SequenceId id = allocator.create();
  allocator.erase(id);
  (void)allocator.create();  // lives in the same slot
  EXPECT_FALSE(allocator.contains(id));
  EXPECT_THROW(allocator.reserve(id, 1), UnknownSequence);
  EXPECT_THROW((void)allocator.try_reserve(id, 1), UnknownSequence);
  EXPECT_THROW(allocator.append(id, 1), UnknownSequence);
  EXPECT_THROW(allocator.make_writable(id, 0, 0), UnknownSequence);
  EXPECT_THROW(allocator.fork(id), UnknownSequence);
  EXPECT_THROW(allocator.truncate(id, 0), UnknownSequence);
  EXPECT_THROW(allocator.erase(id), UnknownSequence);
  EXPECT_THROW(allocator.length(id), UnknownSequence);
  EXPECT_THROW(allocator.capacity(id), UnknownSequence);
  EXPECT_THROW(allocator.pages(id), UnknownSequence);
  EXPECT_THROW(allocator.erase(SequenceId{}), UnknownSequence);
}

TEST(PageAllocator, KnowsAStalePageByItsGeneration) {
  PageAllocator allocator({.ranks = 1,
                           .pages_per_rank = 2,
                           .page_size = 4,
                           .prefix = {.enabled = true, .hash = PrefixHash::kXxh3}});
  const SequenceId id = allocator.create();
  allocator.append(id, 4);
  const PageId page = allocator.pages(id)[0];
  const std::uint32_t generation = allocator.generation(page);
  EXPECT_TRUE(allocator.is_current(page, generation));
  EXPECT_FALSE(allocator.is_current(page, generation + 1));
  PrefixKey key(allocator.prefix_rules());
  key.append(std::vector<std::int32_t>{1, 2, 3, 4});
  allocator.publish(id, key);
  allocator.erase(id);
  EXPECT_TRUE(allocator.is_current(page, generation)) << "cached";

  const SequenceId other = allocator.create();
  allocator.append(other, 8);  // evicts it
  EXPECT_FALSE(allocator.is_current(page, generation)) << "handed out again";
  EXPECT_TRUE(allocator.is_current(page, generation + 1));
  allocator.erase(other);
  EXPECT_FALSE(allocator.is_current(page, generation + 1)) << "free";
  EXPECT_FALSE(allocator.is_current(PageId(), 0)) << "in no pool";
}

TEST(PageAllocator, APageThatMovedIsStale) {
  PageAllocator allocator({.ranks = 2, .pages_per_rank = 4, .page_size = 4});
  const SequenceId id = allocator.create();
  allocator.append(id, 4);
  const PageId page = allocator.pages(id)[0];
  const std::uint32_t generation = allocator.generation(page);
  ASSERT_EQ(allocator.start_resize(page.rank(), 0).size(), 1u);
  EXPECT_TRUE(allocator.is_current(page, generation)) << "while it is copied";
  allocator.finish_moves();
  EXPECT_FALSE(allocator.is_current(page, generation));
  const PageId place = allocator.pages(id)[0];
  EXPECT_TRUE(allocator.is_current(place, allocator.generation(place)));
}

TEST(PageAllocator, RejectsPagesAndRanksOutOfRange) {
  PageAllocator allocator({.ranks = 2, .pages_per_rank = 8});
  EXPECT_THROW(allocator.reference_count(PageId{}), InvalidArgument);
  EXPECT_THROW(allocator.generation(PageId{PageRank{0}, 8}), InvalidArgument);
  EXPECT_THROW(allocator.generation(PageId{PageRank{2}, 0}), InvalidArgument);
  EXPECT_THROW(allocator.free_pages(PageRank{2}), InvalidArgument);
  EXPECT_THROW(allocator.free_pages(PageRank{-1}), InvalidArgument);
  EXPECT_EQ(allocator.reference_count(PageId{PageRank{1}, 7}), 0);
}

}  // namespace
}  // namespace kvmesh
