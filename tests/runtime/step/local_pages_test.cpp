// What a rank remembers of page tables, against looking at all of them again.
#include "runtime/step/local_pages.hpp"

#include <gtest/gtest.h>

#include <map>

#include "kvmesh/allocator.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

constexpr int kRanks = 3;
constexpr int kPageSize = 4;
constexpr Rank kMe{1};

std::span<const PageId> used_pages(const PageAllocator& allocator, SequenceId id) {
  const auto used = static_cast<std::size_t>((allocator.length(id) + kPageSize - 1) / kPageSize);
  return allocator.pages(id).first(used);
}

void expect_same(const LocalSequence& seen, std::span<const PageId> pages) {
  std::vector<LocalPage> mine;
  std::vector<std::int32_t> held(kRanks);
  for (std::size_t logical = 0; logical < pages.size(); ++logical) {
    ++held[static_cast<std::size_t>(pages[logical].rank().value)];
    if (pages[logical].rank() != kMe) continue;
    mine.push_back({pages[logical].index(), static_cast<std::int32_t>(logical)});
  }
  EXPECT_EQ(seen.pages, mine);
  EXPECT_EQ(seen.held, held);
}

/// Serves random sequences; `copies` are the lists as one who reads only what is fresh has them.
class Serving {
 public:
  explicit Serving(std::uint64_t seed) : random_(seed) {}

  void step() {
    if (living_.empty() || random_.one_in(6)) living_.push_back(allocator_.create());
    const std::size_t at = static_cast<std::size_t>(random_.integer(0, std::ssize(living_) - 1));
    const SequenceId id = living_[at];
    if (random_.one_in(12)) return erase(at);
    if (random_.one_in(8)) living_.push_back(allocator_.fork(id));
    if (random_.one_in(6)) {
      const std::int64_t length = random_.integer(0, allocator_.length(id));
      const auto pages = static_cast<std::size_t>((length + kPageSize - 1) / kPageSize);
      pages_.truncate(id, allocator_.pages(id), pages);
      allocator_.truncate(id, length);
    }
    const AppendRequest more{id, random_.integer(0, 9)};
    const auto copies = allocator_.try_append({&more, 1});
    if (!copies) return erase(at);
    if (!copies->empty()) pages_.copied(id, allocator_.pages(id));
    look(id);
  }

 private:
  void look(SequenceId id) {
    LocalSequence& seen = pages_.update(id, used_pages(allocator_, id));
    expect_same(seen, used_pages(allocator_, id));
    std::vector<LocalPage>& copy = copies_[id];
    copy.resize(std::min(copy.size(), seen.fresh));
    ASSERT_EQ(copy.size(), seen.fresh);
    copy.insert(copy.end(), seen.pages.begin() + static_cast<std::ptrdiff_t>(seen.fresh),
                seen.pages.end());
    seen.fresh = seen.pages.size();
    EXPECT_EQ(copy, seen.pages);
  }

  void erase(std::size_t at) {
    allocator_.erase(living_[at]);
    pages_.erase(living_[at]);
    copies_.erase(living_[at]);
    living_.erase(living_.begin() + static_cast<std::ptrdiff_t>(at));
  }

  Random random_;
  PageAllocator allocator_{
      {.ranks = kRanks, .pages_per_rank = 60, .page_size = kPageSize, .home_threshold_tokens = 12}};
  LocalPages pages_{kMe, kRanks};
  std::vector<SequenceId> living_;
  std::map<SequenceId, std::vector<LocalPage>> copies_;
};

TEST(LocalPages, AreWhatThePageTablesSay) {
  const std::uint64_t seed = seed_or(std::random_device{}());
  SCOPED_TRACE(seed);
  Serving serving(seed);
  for (int i = 0; i < 20'000 && !testing::Test::HasFailure(); ++i) serving.step();
}

}  // namespace
}  // namespace kvmesh::test
