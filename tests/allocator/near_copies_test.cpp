// Copies on write stay on the ranks of their sources while these have pages.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "kvmesh/allocator.hpp"
#include "tests/allocator/seed.hpp"

namespace kvmesh {
namespace {

/// A sequence that grows in the same batch, and comes first there, leaves the copy its page.
TEST(NearCopies, TakeTheirPagesBeforeSequencesGrow) {
  for (Placement placement : {Placement::kBalanced, Placement::kStriped, Placement::kPacked})
    for (const std::int64_t threshold : {0, 1000}) {
      PageAllocator allocator({.ranks = 3,
                               .pages_per_rank = 4,
                               .page_size = 4,
                               .placement = placement,
                               .home_threshold_tokens = threshold});
      const SequenceId parent = allocator.create(), grows = allocator.create();
      allocator.append(parent, 5);
      const PageId shared = allocator.pages(parent)[1];
      const SequenceId fork = allocator.fork(parent);
      const std::int64_t others = allocator.free_pages() - 1;
      const auto copies =
          allocator.append(std::vector<AppendRequest>{{grows, others * 4}, {fork, 1}});
      ASSERT_EQ(copies.size(), 1u);
      EXPECT_EQ(copies[0].source, shared);
      EXPECT_EQ(copies[0].destination.rank(), shared.rank()) << name(placement);
      EXPECT_EQ(allocator.free_pages(), 0);
      allocator.verify_integrity();
    }
}

/// Random forks that are written to, in pools that are often full on some ranks.
class Forks {
 public:
  Forks(const AllocatorOptions& options, std::uint64_t seed) : random_(seed), pages_(options) {}

  void step() {
    if (sequences_.empty() || test::uniform(random_, 0, 5) == 0)
      sequences_.push_back(pages_.create());
    if (test::uniform(random_, 0, 2) == 0) sequences_.push_back(pages_.fork(any()));
    if (test::uniform(random_, 0, 2) == 0) {
      write(any());
    } else {
      append();
    }
    while (sequences_.size() > 12) erase();
    pages_.verify_integrity();
  }

  int near = 0, far = 0;  // copies

 private:
  SequenceId any() { return sequences_[random_() % sequences_.size()]; }
  void erase() {
    const auto at = sequences_.begin() + static_cast<std::ptrdiff_t>(random_() % sequences_.size());
    pages_.erase(*at);
    sequences_.erase(at);
  }

  void append() {
    std::vector<AppendRequest> batch;
    std::ranges::shuffle(sequences_, random_);
    for (const SequenceId sequence : sequences_)
      batch.push_back({sequence, test::uniform(random_, 0, 2 * pages_.options().page_size)});
    const std::vector<std::int64_t> free = free_per_rank();
    const auto copies = pages_.try_append(batch);
    copies ? check(*copies, free) : erase();
  }

  void write(SequenceId sequence) {
    const std::int64_t end = pages_.capacity(sequence);
    const std::vector<std::int64_t> free = free_per_rank();
    const auto copies = pages_.try_make_writable(sequence, test::uniform(random_, 0, end), end);
    copies ? check(*copies, free) : erase();
  }

  std::vector<std::int64_t> free_per_rank() const {
    std::vector<std::int64_t> free;
    for (PageRank rank{0}; rank.value < pages_.options().ranks; ++rank.value)
      free.push_back(pages_.free_pages(rank));
    return free;
  }

  /// A copy leaves the rank of its source only if copies have taken all pages that were `free`.
  void check(const std::vector<PageCopy>& copies, const std::vector<std::int64_t>& free) {
    for (const PageCopy& copy : copies) {
      const PageRank home = copy.source.rank();
      if (copy.destination.rank() == home) {
        ++near;
        continue;
      }
      ++far;
      const auto taken = std::ranges::count_if(
          copies, [&](const PageCopy& it) { return it.destination.rank() == home; });
      ASSERT_EQ(taken, free[static_cast<std::size_t>(home.value)]);
    }
  }

  std::mt19937_64 random_;
  PageAllocator pages_;
  std::vector<SequenceId> sequences_;
};

TEST(NearCopies, LeaveARankOnlyWhenCopiesHaveTakenAllItsPages) {
  SCOPED_TRACE(test::seed_note());
  std::mt19937_64 random(test::seed());
  int near = 0, far = 0;
  for (Placement placement : {Placement::kBalanced, Placement::kStriped, Placement::kPacked})
    for (int ranks = 2; ranks <= 5; ++ranks) {
      Forks forks({.ranks = ranks,
                   .pages_per_rank = test::uniform(random, 6, 16),
                   .page_size = 4,
                   .placement = placement,
                   .home_threshold_tokens = test::uniform(random, 0, 24)},
                  random());
      for (int step = 0; step < 500; ++step) {
        forks.step();
        if (HasFatalFailure()) return;
      }
      near += forks.near;
      far += forks.far;
    }
  EXPECT_GT(near, 1000);
  EXPECT_GT(far, 100) << "full ranks were reached";
}

}  // namespace
}  // namespace kvmesh
