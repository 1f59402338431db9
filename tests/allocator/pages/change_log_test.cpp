#include "allocator/pages/change_log.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include "kvmesh/allocator.hpp"
#include "tests/allocator/seed.hpp"

namespace kvmesh {
namespace {

using test::uniform;

/// Page tables built from the log alone.
class Follower {
 public:
  explicit Follower(PageAllocator& allocator) : cursor_(allocator.follow()) {}

  void read(const PageAllocator& allocator) {
    for (;;) {
      const ChangeRun run = allocator.read_changes(cursor_);
      ASSERT_FALSE(run.lost);
      if (run.changes.empty()) return;
      for (const Change& change : run.changes) apply(change);
    }
  }
  const std::map<SequenceId, std::vector<PageId>>& tables() const { return tables_; }
  int count(ChangeKind kind) const { return counts_[static_cast<std::size_t>(kind)]; }

 private:
  void apply(const Change& change) {
    std::vector<PageId>& table = tables_[change.sequence];
    const auto position = static_cast<std::size_t>(change.position);
    ++counts_[static_cast<std::size_t>(change.kind)];
    switch (change.kind) {
      case ChangeKind::kAdded:
        if (table.empty()) table.resize(position);  // the parent's were released
        ASSERT_EQ(position, table.size());
        return table.push_back(change.new_page);
      case ChangeKind::kReplaced:
        ASSERT_EQ(table.at(position), change.old_page);
        table[position] = change.new_page;
        return;
      case ChangeKind::kDropped:
        ASSERT_EQ(position + 1, table.size());
        ASSERT_EQ(table.back(), change.old_page);
        return table.pop_back();
      case ChangeKind::kReleased:
        ASSERT_EQ(table.at(position), change.old_page);
        table[position] = PageId();
        return;
      case ChangeKind::kErased:
        ASSERT_TRUE(table.empty());
        tables_.erase(change.sequence);
        return;
      case ChangeKind::kPublished:
        FAIL() << "there is no prefix cache";
    }
  }

  ChangeCursor cursor_;
  std::map<SequenceId, std::vector<PageId>> tables_;
  std::array<int, 6> counts_{};
};

TEST(ChangeLog, ReproducesEveryPageTable) {
  SCOPED_TRACE(test::seed_note());
  std::mt19937_64 random(test::seed());
  PageAllocator allocator(
      {.ranks = 3, .pages_per_rank = 40, .page_size = 4, .home_threshold_tokens = 12, .window = 9});
  Follower often(allocator), rarely(allocator);
  std::vector<SequenceId> living;
  for (int step = 0; step < 5000; ++step) {
    // Few sequences: with many the pools are full, and little changes any more.
    const bool may_grow = living.size() < 12;
    if (living.empty() || (may_grow && uniform(random, 0, 5) == 0))
      living.push_back(allocator.create());
    const auto at = static_cast<std::size_t>(uniform(random, 0, std::ssize(living) - 1));
    const SequenceId id = living[at];
    const std::int64_t length = allocator.length(id);
    switch (uniform(random, 0, 7)) {
      case 6:
        allocator.slide_window(id, uniform(random, 0, length));
        break;
      case 0:
        if (may_grow) living.push_back(allocator.fork(id));
        break;
      case 1:
        try {
          allocator.truncate(id, uniform(random, 0, length));
        } catch (const InvalidArgument&) {
          ASSERT_GT(allocator.released_pages(id), 0);
        }
        break;
      case 2:
        allocator.erase(id);
        living.erase(living.begin() + static_cast<std::ptrdiff_t>(at));
        break;
      case 3:
        (void)allocator.try_make_writable(id, 0, length);
        break;
      case 4:
        (void)allocator.try_reserve(id, length + 9);
        break;
      default:
        const AppendRequest more{id, uniform(random, 0, 9)};
        (void)allocator.try_append({&more, 1});
    }
    often.read(allocator);
    if (step % 20 == 0) rarely.read(allocator);
    if (HasFatalFailure()) return;
    for (const SequenceId living_id : living) {
      const auto table = often.tables().find(living_id);
      const auto pages = allocator.pages(living_id);
      if (table == often.tables().end()) {
        ASSERT_TRUE(pages.empty());
      } else {
        ASSERT_TRUE(std::ranges::equal(table->second, pages));
      }
    }
  }
  rarely.read(allocator);
  EXPECT_EQ(often.tables(), rarely.tables());
  EXPECT_GT(often.count(ChangeKind::kReplaced), 5);
  EXPECT_GT(often.count(ChangeKind::kReleased), 5);
  allocator.verify_integrity();
}

TEST(ChangeLog, ReportsAFollowerTooFarBehind) {
  ChangeLog log(1);
  log.record({});
  ChangeCursor slow = log.follow();
  EXPECT_TRUE(log.read(slow).changes.empty()) << "nothing is recorded before there is a follower";
  ChangeCursor quick = slow;
  for (int i = 0; i < ChangeLog::kLeast; ++i) log.record({.position = i});
  EXPECT_EQ(log.read(quick).changes.size(), 1024u);
  log.record({.position = -1});
  const ChangeRun lost = log.read(slow);
  EXPECT_TRUE(lost.lost);
  EXPECT_TRUE(lost.changes.empty());
  const ChangeRun next = log.read(quick);
  ASSERT_EQ(next.changes.size(), 1u);
  EXPECT_EQ(next.changes[0].position, -1);
  EXPECT_TRUE(log.read(slow).changes.empty()) << "a loss is reported once";
}

/// Publishes and erases a sequence of `pages` pages, whose tokens begin at `first`.
void cache_pages(PageAllocator& allocator, std::int64_t pages, std::int32_t first) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(pages));
  std::iota(tokens.begin(), tokens.end(), first);
  PrefixKey key(allocator.prefix_rules());
  key.append(tokens);
  const SequenceId sequence = allocator.create();
  allocator.append(sequence, pages);
  allocator.publish(sequence, key);
  allocator.erase(sequence);
}

TEST(EvictionLog, KeepsAllThatOneOperationEvicts) {
  constexpr std::int64_t kPages = 1 << 12;
  PageAllocator allocator({.ranks = 2,
                           .pages_per_rank = kPages / 2,
                           .page_size = 1,
                           .prefix = {.enabled = true, .hash = PrefixHash::kXxh3}});
  EvictionCursor cursor = allocator.follow_evictions();
  EvictionCursor idle = cursor;
  for (std::int32_t round = 0; round < 3; ++round) {
    cache_pages(allocator, kPages, round * kPages);
    ASSERT_EQ(allocator.cached_pages(), kPages);
    const SequenceId large = allocator.create();
    allocator.append(large, kPages);
    std::set<PageId> evicted;
    for (;;) {
      const std::span<const PageId> pages = allocator.read_evictions(cursor);
      if (pages.empty()) break;
      for (const PageId page : pages)
        EXPECT_TRUE(evicted.insert(page).second) << "page " << page.index() << " twice";
    }
    EXPECT_EQ(std::ssize(evicted), kPages);
    allocator.erase(large);
  }
  EXPECT_TRUE(allocator.read_evictions(idle).empty()) << "too far behind: reads on from the end";
}

TEST(EvictionLog, IsEmptyWithoutPrefixCacheOrFollower) {
  PageAllocator plain({.pages_per_rank = 4});
  EvictionCursor cursor = plain.follow_evictions();
  plain.append(plain.create(), 64);
  EXPECT_TRUE(plain.read_evictions(cursor).empty());

  PageAllocator late({.pages_per_rank = 4, .page_size = 1, .prefix = {.enabled = true}});
  cache_pages(late, 4, 0);
  cache_pages(late, 4, 10);
  cursor = late.follow_evictions();
  EXPECT_TRUE(late.read_evictions(cursor).empty()) << "what was evicted before";
  cache_pages(late, 3, 20);
  EXPECT_EQ(late.read_evictions(cursor).size(), 3u);
}

}  // namespace
}  // namespace kvmesh
