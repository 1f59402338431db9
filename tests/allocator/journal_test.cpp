#include "allocator/journal.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <set>
#include <vector>

#include "kvmesh/allocator.hpp"

namespace kvmesh {
namespace {

const AllocatorOptions kOptions{.ranks = 2, .pages_per_rank = 64, .page_size = 4};

TEST(Journal, KeepsTheLast256Operations) {
  PageAllocator allocator(kOptions);
  EXPECT_TRUE(allocator.journal().empty());
  const SequenceId id = allocator.create();
  ASSERT_EQ(allocator.journal().size(), 1u);
  EXPECT_EQ(allocator.journal()[0].operation, "create");
  EXPECT_EQ(allocator.journal()[0].sequence, id);
  EXPECT_EQ(allocator.journal()[0].number, 0u);

  std::vector<std::uint64_t> digests{allocator.digest()};
  for (int i = 1; i < 300; ++i) {
    if (i % 2 == 1) {
      allocator.append(id, 3);
    } else {
      allocator.truncate(id, 1);
    }
    digests.push_back(allocator.digest());
  }
  const std::vector<JournalEntry> entries = allocator.journal();
  ASSERT_EQ(entries.size(), 256u);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const std::uint64_t number = 300 - 256 + i;
    EXPECT_EQ(entries[i].number, number);
    EXPECT_EQ(entries[i].digest, digests[number]);
    EXPECT_EQ(entries[i].operation, number % 2 == 1 ? "append" : "truncate");
    EXPECT_EQ(entries[i].sequence, id);
  }
}

TEST(Journal, DigestCoversTheOptions) {
  std::set<std::uint64_t> digests;
  digests.insert(PageAllocator(kOptions).digest());
  AllocatorOptions other = kOptions;
  other.ranks = 3;
  digests.insert(PageAllocator(other).digest());
  other = kOptions;
  other.pages_per_rank = 65;
  digests.insert(PageAllocator(other).digest());
  other = kOptions;
  other.page_size = 5;
  digests.insert(PageAllocator(other).digest());
  other = kOptions;
  other.placement = Placement::kPacked;
  digests.insert(PageAllocator(other).digest());
  other = kOptions;
  other.home_threshold_tokens = 0;
  digests.insert(PageAllocator(other).digest());
  EXPECT_EQ(digests.size(), 6u);
}

/// Two sequences of 6 tokens in capacity 12, the second forked from the first, and three alone,
/// which only their ids distinguish when they append without taking pages.
struct Pair {
  PageAllocator allocator{kOptions};
  SequenceId a = allocator.create();
  SequenceId b;
  std::vector<SequenceId> alone;
  Pair() {
    allocator.append(a, 6);
    b = allocator.fork(a);
    allocator.reserve(a, 12);
    allocator.reserve(b, 12);
    for (int i = 0; i < 3; ++i) {
      alone.push_back(allocator.create());
      allocator.reserve(alone.back(), 4);
    }
  }
};

TEST(Journal, DigestCoversEveryOperationAndArgument) {
  using Operation = std::function<void(Pair&)>;
  const std::vector<Operation> operations = {
      [](Pair&) {},
      [](Pair& p) { p.allocator.create(); },
      [](Pair& p) { p.allocator.fork(p.a); },
      [](Pair& p) { p.allocator.fork(p.b); },
      [](Pair& p) { p.allocator.erase(p.a); },
      [](Pair& p) { p.allocator.erase(p.b); },
      [](Pair& p) { p.allocator.truncate(p.a, 5); },
      [](Pair& p) { p.allocator.truncate(p.a, 6); },
      [](Pair& p) { p.allocator.truncate(p.b, 5); },
      [](Pair& p) { p.allocator.reserve(p.a, 12); },
      [](Pair& p) { p.allocator.reserve(p.a, 13); },
      [](Pair& p) { p.allocator.reserve(p.a, 1); },
      [](Pair& p) { p.allocator.append(p.a, 0); },
      [](Pair& p) { p.allocator.append(p.a, 1); },
      [](Pair& p) { p.allocator.append(p.a, 2); },
      [](Pair& p) { p.allocator.append(p.b, 1); },
      [](Pair& p) { p.allocator.append(std::vector<AppendRequest>{}); },
      [](Pair& p) {
        p.allocator.append(std::vector<AppendRequest>{{p.a, 1}, {p.b, 2}});
      },
      [](Pair& p) {
        p.allocator.append(std::vector<AppendRequest>{{p.a, 2}, {p.b, 1}});
      },
      [](Pair& p) {
        p.allocator.append(std::vector<AppendRequest>{{p.b, 2}, {p.a, 1}});
      },
      [](Pair& p) {
        p.allocator.append(std::vector<AppendRequest>{{p.alone[0], 1}, {p.alone[1], 1}});
      },
      [](Pair& p) {
        p.allocator.append(std::vector<AppendRequest>{{p.alone[0], 1}, {p.alone[2], 1}});
      },
      [](Pair& p) { p.allocator.make_writable(p.a, 0, 1); },
      [](Pair& p) { p.allocator.make_writable(p.a, 0, 2); },
      [](Pair& p) { p.allocator.make_writable(p.a, 1, 2); },
      [](Pair& p) { p.allocator.make_writable(p.b, 0, 1); },
  };
  std::set<std::uint64_t> digests;
  for (const Operation& operation : operations) {
    Pair x;
    Pair y;
    operation(x);
    operation(y);
    EXPECT_EQ(x.allocator.digest(), y.allocator.digest());
    digests.insert(x.allocator.digest());

    // A later equal operation does not hide an earlier difference.
    Pair unchanged;
    unchanged.allocator.create();
    x.allocator.create();
    if (&operation != &operations.front()) {
      EXPECT_NE(x.allocator.digest(), unchanged.allocator.digest());
    }
  }
  EXPECT_EQ(digests.size(), operations.size()) << "two different operations left one digest";
}

/// Two ranks, of which the first holds a published sequence and one that is not.
struct Published {
  PageAllocator allocator{{.ranks = 2,
                           .pages_per_rank = 16,
                           .page_size = 4,
                           .placement = Placement::kPacked,
                           .prefix = {.enabled = true, .hash = PrefixHash::kXxh3}}};
  PrefixKey key{allocator.prefix_rules()};
  SequenceId published = allocator.create(), other = allocator.create();
  Published() {
    key.append(std::vector<std::int32_t>(16, 3));
    for (const SequenceId id : {published, other}) allocator.append(id, 16);
    allocator.publish(published, key);
  }
  void publish(const Retention& retention) { allocator.publish(published, key, {&retention, 1}); }
};

// An argument counts even where it changes no page: the pages of later operations may depend on it.
TEST(Journal, DigestCoversMovesAndPrefixes) {
  using Operation = std::function<void(Published&)>;
  const std::vector<Operation> operations = {
      [](Published&) {},
      [](Published& p) { p.allocator.start_resize(PageRank{0}, 12); },
      [](Published& p) { p.allocator.start_resize(PageRank{1}, 12); },
      [](Published& p) { p.allocator.start_resize(PageRank{1}, 13); },
      [](Published& p) { p.allocator.start_rebalance(0); },
      [](Published& p) { p.allocator.start_rebalance(1); },
      [](Published& p) { p.allocator.start_rebalance_now({.limit = 0}); },
      [](Published& p) { p.allocator.start_rebalance_now({.limit = 1}); },
      [](Published& p) { p.allocator.start_rebalance_now({.limit = 0, .leaving = PageRank{0}}); },
      [](Published& p) { p.allocator.start_rebalance_now({.limit = 0, .leaving = PageRank{1}}); },
      [](Published& p) { p.allocator.match_prefix(p.key); },
      [](Published& p) { p.allocator.match_prefix(p.key, 8); },
      [](Published& p) { p.allocator.match_prefix(p.key, 4); },
      [](Published& p) { p.allocator.create_with_prefix(p.allocator.match_prefix(p.key)); },
      [](Published& p) { p.allocator.bring_back(p.key, 4, {}); },
      [](Published& p) { p.allocator.bring_back(p.key, 3, {}); },
      [](Published& p) { p.allocator.publish(p.published, p.key); },
      [](Published& p) { p.allocator.publish(p.other, p.key); },
      [](Published& p) { p.publish({.tokens = 4, .priority = 60}); },
      [](Published& p) { p.publish({.tokens = 4, .priority = 61}); },
      [](Published& p) { p.publish({.tokens = 4, .priority = 60, .operations = 9}); },
  };
  std::set<std::uint64_t> digests;
  for (const Operation& operation : operations) {
    Published x, y;
    operation(x);
    operation(y);
    EXPECT_EQ(x.allocator.digest(), y.allocator.digest());
    digests.insert(x.allocator.digest());
  }
  EXPECT_EQ(digests.size(), operations.size()) << "two different operations left one digest";
}

TEST(Journal, NamesTheFirstDifferentOperation) {
  Pair x;
  Pair y;
  ASSERT_EQ(x.allocator.digest(), y.allocator.digest());
  const std::size_t common = x.allocator.journal().size();
  x.allocator.append(x.a, 1);
  y.allocator.append(y.a, 2);
  for (Pair* pair : {&x, &y}) pair->allocator.erase(pair->b);
  const auto left = x.allocator.journal();
  const auto right = y.allocator.journal();
  ASSERT_EQ(left.size(), right.size());
  std::size_t first = 0;
  while (first < left.size() && left[first].digest == right[first].digest) ++first;
  EXPECT_EQ(first, common);
  EXPECT_EQ(left[first].operation, "append");
  EXPECT_NE(left.back().digest, right.back().digest);
}

}  // namespace
}  // namespace kvmesh
