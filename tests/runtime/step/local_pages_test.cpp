// Page tables followed by a rank and its device, against reading all of them again.
#include "runtime/step/local_pages.hpp"

#include <gtest/gtest.h>

#include <map>

#include "kvmesh/allocator.hpp"
#include "runtime/step/sent_pages.hpp"
#include "runtime/step/step_batch.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

constexpr int kRanks = 3;
constexpr int kPageSize = 4;
constexpr PageRank kMe{1};

std::span<const PageId> used_pages(const PageAllocator& allocator, SequenceId id) {
  const auto used = static_cast<std::size_t>((allocator.length(id) + kPageSize - 1) / kPageSize);
  return allocator.pages(id).first(used);
}

void expect_same(const LocalSequence& seen, std::span<const PageId> pages) {
  std::vector<LocalPage> mine;
  std::vector<std::int32_t> held(kRanks);
  for (std::size_t logical = 0; logical < pages.size(); ++logical) {
    if (!pages[logical].valid()) continue;
    ++held[static_cast<std::size_t>(pages[logical].rank().value)];
    if (pages[logical].rank() != kMe) continue;
    mine.push_back({pages[logical].index(), static_cast<std::int32_t>(logical)});
  }
  EXPECT_EQ(seen.pages, mine);
  EXPECT_EQ(seen.held, held);
}

/// Serves random sequences; `device_` has the lists of a device that gets only new pages.
class Serving {
 public:
  /// Looks at a sequence after one in `behind` steps.
  Serving(std::uint64_t seed, int behind, std::int64_t window = 0)
      : random_(seed), window_(window), behind_(behind) {}

  /// Number of pages that were not sent again.
  std::size_t kept() const { return kept_; }

  void step() {
    if (living_.empty() || random_.one_in(6)) living_.push_back(allocator_.create());
    const std::size_t at = static_cast<std::size_t>(random_.integer(0, std::ssize(living_) - 1));
    const SequenceId id = living_[at];
    if (random_.one_in(12)) return erase(at);
    if (random_.one_in(8)) living_.push_back(allocator_.fork(id));
    if (random_.one_in(6)) {
      const std::int64_t length = random_.integer(0, allocator_.length(id));
      const bool may = length > allocator_.released_pages(id) * kPageSize + window_;
      if (may || length == 0 || window_ == 0) allocator_.truncate(id, length);
    }
    if (window_ > 0 && random_.one_in(3)) {
      allocator_.slide_window(id, random_.integer(0, allocator_.length(id)));
    }
    if (random_.one_in(6)) {
      const std::int64_t length = allocator_.length(id);
      const std::int64_t begin = random_.integer(0, length);
      (void)allocator_.try_make_writable(id, begin, random_.integer(begin, length));
    }
    const AppendRequest more{id, random_.integer(0, 9)};
    const auto copies = allocator_.try_append({&more, 1});
    if (!copies) return erase(at);
    if (random_.one_in(behind_)) look(random_.pick(living_));
  }

 private:
  void look(SequenceId id) {
    const LocalSequence& seen = pages_.update(id, used_pages(allocator_, id));
    expect_same(seen, used_pages(allocator_, id));
    sent_.follow([this](std::size_t slot) { EXPECT_EQ(device_.erase(slot), 1u); });
    const std::size_t kept = sent_.kept(id.slot(), seen.pages);
    kept_ += kept;
    std::vector<LocalPage>& list = device_[id.slot()];
    ASSERT_LE(kept, list.size());
    list.resize(kept);
    list.insert(list.end(), seen.pages.begin() + static_cast<std::ptrdiff_t>(kept),
                seen.pages.end());
    sent_.sent(id.slot(), list);
    EXPECT_EQ(list, seen.pages);
  }

  void erase(std::size_t at) {
    allocator_.erase(living_[at]);
    living_.erase(living_.begin() + static_cast<std::ptrdiff_t>(at));
  }

  Random random_;
  std::int64_t window_;
  PageAllocator allocator_{{.ranks = kRanks,
                            .pages_per_rank = 60,
                            .page_size = kPageSize,
                            .home_threshold_tokens = 12,
                            .window = window_}};
  LocalPages pages_{kMe, allocator_};
  SentPages sent_{&allocator_};
  std::vector<SequenceId> living_;
  std::map<std::size_t, std::vector<LocalPage>> device_;  // by slot
  std::size_t kept_ = 0;
  int behind_;
};

TEST(LocalPages, EqualThePageTables) {
  const std::uint64_t seed = seed_or(std::random_device{}());
  SCOPED_TRACE(seed);
  Serving serving(seed, 1);
  for (int i = 0; i < 20'000 && !testing::Test::HasFailure(); ++i) serving.step();
  EXPECT_GT(serving.kept(), 5'000u);
}

TEST(LocalPages, LeaveOutWhatIsBehindTheWindow) {
  const std::uint64_t seed = seed_or(std::random_device{}());
  SCOPED_TRACE(seed);
  Serving often(seed, 1, 17), seldom(seed, 500, 17);
  for (int i = 0; i < 20'000 && !testing::Test::HasFailure(); ++i) often.step();
  EXPECT_GT(often.kept(), 1'000u);
  for (int i = 0; i < 40'000 && !testing::Test::HasFailure(); ++i) seldom.step();
}

TEST(LocalPages, ReadTheTablesAnewWhenTheLogHasGoneOn) {
  const std::uint64_t seed = seed_or(std::random_device{}());
  SCOPED_TRACE(seed);
  Serving serving(seed, 500);  // some 2000 changes; the log keeps 1024
  for (int i = 0; i < 60'000 && !testing::Test::HasFailure(); ++i) serving.step();
}

TEST(SentPages, StayValidWhenPagesArePublishedOrEvicted) {
  PageAllocator allocator(
      {.ranks = 1, .pages_per_rank = 3, .page_size = 4, .prefix = {.enabled = true}});
  SentPages sent(&allocator);
  const auto follow = [&] { sent.follow([](std::size_t) {}); };
  const auto key_of = [&](std::int32_t first) {
    PrefixKey key(allocator.prefix_rules());
    key.append(std::vector<std::int32_t>{first, 2, 3, 4, 5, 6, 7, 8});
    return key;
  };
  const SequenceId living = allocator.create();
  allocator.append(living, 8);
  const std::span<const PageId> pages = allocator.pages(living);
  const std::vector<LocalPage> local{{pages[0].index(), 0}, {pages[1].index(), 1}};
  follow();
  sent.sent(living.slot(), local);
  allocator.publish(living, key_of(1));
  follow();
  EXPECT_EQ(sent.kept(living.slot(), local), 2u);

  const SequenceId gone = allocator.create();
  allocator.append(gone, 4);
  allocator.publish(gone, key_of(9));
  allocator.erase(gone);
  allocator.append(allocator.create(), 4);  // takes the only page that is not held
  follow();
  EXPECT_EQ(sent.kept(living.slot(), local), 2u);
}

// Positions are int32: see check_step.
TEST(StepBatch, RejectsSequencesLongerThanPositions) {
  constexpr int kPage = 1 << 20;
  PageAllocator allocator({.ranks = 1, .pages_per_rank = 2048, .page_size = kPage});
  const SequenceId sequence = allocator.create();
  const CacheOptions cache{.page_size = kPage};
  const auto check = [&](std::int64_t tokens) {
    const BatchEntry entry{sequence, tokens, 1};
    return check_step(allocator, cache, {&entry, 1}, {});
  };
  constexpr std::int64_t kMost = std::int64_t{2047} * kPage;  // whole pages below 2^31 - 4096
  EXPECT_EQ(check(kMost).front().length, kMost);
  EXPECT_THROW(check(kMost + 1), InvalidArgument);
  EXPECT_THROW(check((std::int64_t{1} << 31) - 1), InvalidArgument);
  allocator.append(sequence, kMost);
  EXPECT_THROW(check(1), InvalidArgument);

  // Nor batches with more queries than can be numbered.
  const BatchEntry all[] = {{sequence, 0, kMost}, {allocator.fork(sequence), 0, kMost}};
  EXPECT_NO_THROW(check_step(allocator, cache, {all, 1}, {}));
  EXPECT_THROW(check_step(allocator, cache, all, {}), InvalidArgument);
}

}  // namespace
}  // namespace kvmesh::test
