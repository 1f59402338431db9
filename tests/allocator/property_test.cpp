// Random operations, right and wrong ones, against a plain model.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <iterator>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "kvmesh/allocator.hpp"
#include "tests/allocator/model.hpp"
#include "tests/allocator/seed.hpp"

namespace kvmesh {
namespace {

using test::uniform;

/// Drives an allocator, a model of it, and a replica that gets only the operations that succeeded.
/// The replica stays equal only if failures change nothing, not even the pages handed out later.
class Driver {
 public:
  Driver(const AllocatorOptions& options, std::uint64_t seed)
      : options_(options), random_(seed), allocator_(options), replica_(options), model_(options) {}

  void step() {
    const std::uint64_t digest = allocator_.digest();
    succeeded_ = false;
    const std::int64_t draw = uniform(random_, 0, 119);
    if (model_.sequences().empty() || draw < 8) {
      create();
    } else if (draw < 20) {
      reserve(any());
    } else if (draw < 58) {
      append();
    } else if (draw < 66) {
      make_writable(any());
    } else if (draw < 76) {
      fork(any());
    } else if (draw < 86) {
      truncate(any());
    } else if (draw < 93) {
      erase(any());
    } else if (draw < 100) {
      misuse();
    } else if (draw >= 108) {
      model_.is_moving() ? end_side_moves() : start_side_moves();
    } else if (model_.is_moving()) {
      refuse_to_move();
    } else if (draw < 103) {
      rebalance();
    } else {
      resize();
    }
    if (testing::Test::HasFatalFailure()) return;

    ASSERT_EQ(succeeded_, digest != allocator_.digest());
    ASSERT_EQ(allocator_.digest(), replica_.digest());
    model_.check(allocator_);
    if (testing::Test::HasFatalFailure()) return;
    model_.check(replica_);
  }

  int refusals() const { return refusals_; }
  int copies() const { return copies_; }
  int moves() const { return moves_; }
  int side_moves() const { return side_moves_; }
  int pointless_moves() const { return pointless_moves_; }

 private:
  SequenceId any() {
    const auto size = static_cast<std::int64_t>(model_.sequences().size());
    return std::next(model_.sequences().begin(), uniform(random_, 0, size - 1))->first;
  }

  std::int64_t length(SequenceId id) const {
    return static_cast<std::int64_t>(model_.sequences().at(id).tokens.size());
  }

  bool coin() { return uniform(random_, 0, 1) == 1; }

  void create() {
    const SequenceId id = allocator_.create();
    ASSERT_EQ(replica_.create(), id);
    ASSERT_FALSE(model_.sequences().contains(id));
    model_.created(id);
    succeeded_ = true;
  }

  /// Runs an operation that needs `missing` pages: it must succeed if and only if they are free.
  void expect_pages(std::int64_t missing, const std::function<void(PageAllocator&)>& operation) {
    const std::int64_t free = model_.free_pages();
    try {
      operation(allocator_);
      succeeded_ = true;
    } catch (const OutOfPages& error) {
      ASSERT_EQ(error.asked_pages(), missing);
      ASSERT_EQ(error.free_pages(), free);
      ++refusals_;
    }
    ASSERT_EQ(succeeded_, missing <= free);
    if (succeeded_) operation(replica_);
  }

  void reserve(SequenceId id) {
    const std::int64_t tokens = uniform(random_, 0, 8 * options_.page_size);
    const std::int64_t missing = model_.missing_for_reserve(id, tokens);
    ASSERT_EQ(allocator_.can_reserve(id, tokens).has_value(), missing <= model_.free_pages());
    if (coin()) {
      succeeded_ = allocator_.try_reserve(id, tokens).has_value();
      ASSERT_EQ(succeeded_, missing <= model_.free_pages());
      if (succeeded_) replica_.reserve(id, tokens);
    } else {
      expect_pages(missing, [&](PageAllocator& a) { a.reserve(id, tokens); });
    }
    if (succeeded_) model_.reserved(allocator_, id);
  }

  std::vector<AppendRequest> draw_batch() {
    std::vector<SequenceId> ids;
    for (const auto& [id, sequence] : model_.sequences()) ids.push_back(id);
    std::shuffle(ids.begin(), ids.end(), random_);
    ids.resize(static_cast<std::size_t>(
        uniform(random_, 1, std::min<std::int64_t>(static_cast<std::int64_t>(ids.size()), 6))));
    std::vector<AppendRequest> requests;
    for (SequenceId id : ids)
      requests.push_back({id, uniform(random_, 0, coin() ? 1 : 2 * options_.page_size)});
    return requests;
  }

  void append() {
    const std::vector<AppendRequest> requests = draw_batch();
    const std::int64_t missing = model_.missing_for_append(requests);
    ASSERT_EQ(allocator_.can_append(requests).has_value(), missing <= model_.free_pages());
    ASSERT_EQ(allocator_.pages_needed(requests), missing);  // the replica is not asked
    std::vector<PageCopy> copies;
    if (coin()) {
      const auto result = allocator_.try_append(requests);
      succeeded_ = result.has_value();
      ASSERT_EQ(succeeded_, missing <= model_.free_pages());
      if (!succeeded_) return;
      copies = *result;
      ASSERT_EQ(replica_.append(requests), copies);
    } else {
      expect_pages(missing, [&](PageAllocator& a) { copies = a.append(requests); });
    }
    if (!succeeded_) return;
    copies_ += static_cast<int>(copies.size());
    model_.appended(allocator_, requests, copies);
  }

  void make_writable(SequenceId id) {
    const std::int64_t begin = uniform(random_, 0, allocator_.capacity(id));
    const std::int64_t end = uniform(random_, begin, allocator_.capacity(id));
    std::vector<PageCopy> copies;
    const std::int64_t missing = model_.missing_for_writable(id, begin, end);
    ASSERT_EQ(allocator_.can_make_writable(id, begin, end).has_value(),
              missing <= model_.free_pages());
    expect_pages(missing, [&](PageAllocator& a) { copies = a.make_writable(id, begin, end); });
    if (!succeeded_) return;
    copies_ += static_cast<int>(copies.size());
    model_.made_writable(allocator_, id, begin, end, copies);
  }

  void fork(SequenceId id) {
    const SequenceId child = allocator_.fork(id);
    ASSERT_EQ(replica_.fork(id), child);
    model_.forked(allocator_, id, child);
    succeeded_ = true;
  }

  void truncate(SequenceId id) {
    const std::int64_t kept = uniform(random_, 0, length(id));
    allocator_.truncate(id, kept);
    replica_.truncate(id, kept);
    model_.truncated(allocator_, id, kept);
    succeeded_ = true;
  }

  void erase(SequenceId id) {
    allocator_.erase(id);
    replica_.erase(id);
    model_.erased(id);
    erased_.push_back(id);
    succeeded_ = true;
  }

  PageRank any_rank() {
    return PageRank{static_cast<std::int32_t>(uniform(random_, 0, options_.ranks - 1))};
  }

  void rebalance() {
    const std::int64_t limit = coin() ? 1000 : uniform(random_, 0, 5);
    const std::vector<PageCopy> copies = allocator_.start_rebalance(limit);
    ASSERT_EQ(replica_.start_rebalance(limit), copies);
    ASSERT_LE(std::ssize(copies), limit);
    if (!end_moves(copies) || limit < 1000) return;
    // Every rank holds its share, up to a page.
    const auto held = static_cast<double>(std::max<std::int64_t>(total_held(), 1));
    for (PageRank rank{0}; rank.value < options_.ranks; ++rank.value) {
      const double share = held * static_cast<double>(model_.pool_pages(rank)) /
                           (held + static_cast<double>(model_.free_pages()));
      ASSERT_NEAR(static_cast<double>(model_.held_on(rank)), share, 1) << "rank " << rank.value;
    }
  }
  std::int64_t total_held() const {
    std::int64_t held = 0;
    for (PageRank rank{0}; rank.value < options_.ranks; ++rank.value) held += model_.held_on(rank);
    return held;
  }

  void resize() {
    const PageRank rank = any_rank();
    const std::int64_t pages = coin() ? options_.pages_per_rank * uniform(random_, 0, 1)
                                      : uniform(random_, 0, options_.pages_per_rank);
    const std::int64_t leaving = model_.held_past(rank, pages);
    const std::int64_t free = model_.free_pages() + pages - model_.pool_pages(rank);
    ASSERT_EQ(allocator_.can_resize(rank, pages).has_value(), free >= 0);
    std::vector<PageCopy> copies;
    try {
      copies = allocator_.start_resize(rank, pages);
    } catch (const OutOfPages& error) {
      ASSERT_LT(free, 0);
      ASSERT_EQ(error.asked_pages(), leaving);
      ASSERT_EQ(error.free_pages(), free + leaving);
      ++refusals_;
      return;
    }
    ASSERT_GE(free, 0);
    ASSERT_EQ(std::ssize(copies), leaving);
    ASSERT_EQ(replica_.try_start_resize(rank, pages).value(), copies);
    if (end_moves(copies)) model_.resized(rank, pages);
  }

  /// Pages that move are neither freed nor handed out meanwhile, since nothing can be changed.
  bool end_moves(const std::vector<PageCopy>& copies) {
    succeeded_ = true;
    allocator_.verify_integrity();
    const std::uint64_t digest = allocator_.digest();
    const auto changes = [&](const auto& change) {
      EXPECT_THROW(change(), InvalidArgument);
      EXPECT_EQ(allocator_.digest(), digest);
    };
    changes([&] { allocator_.create(); });
    changes([&] { allocator_.append({}); });
    changes([&] { allocator_.start_rebalance(1); });
    changes([&] { allocator_.start_resize(PageRank{0}, 0); });
    for (const auto& [id, sequence] : model_.sequences()) {
      changes([&, id = id] { allocator_.erase(id); });
      EXPECT_TRUE(std::ranges::equal(allocator_.pages(id), sequence.pages));
    }
    const bool cancels = uniform(random_, 0, 3) == 0;
    for (PageAllocator* it : {&allocator_, &replica_})
      cancels ? it->cancel_moves() : static_cast<void>(it->finish_moves());
    EXPECT_THROW(allocator_.finish_moves(), InvalidArgument);
    EXPECT_THROW(allocator_.cancel_moves(), InvalidArgument);
    if (cancels) {
      model_.not_moved(copies);
    } else {
      model_.moved(allocator_, copies);
    }
    moves_ += cancels ? 0 : static_cast<int>(copies.size());
    return !cancels;
  }

  void start_side_moves() {
    const RebalanceOptions options{.limit = coin() ? 1000 : uniform(random_, 0, 5),
                                   .leaving = coin() ? any_rank() : PageRank{-1}};
    const std::vector<PageCopy> copies = allocator_.start_rebalance_now(options);
    ASSERT_EQ(replica_.start_rebalance_now(options), copies);
    ASSERT_LE(std::ssize(copies), options.limit);
    model_.began_moves(copies, coin());
    side_moves_ += static_cast<int>(copies.size());
    started_ = static_cast<std::int64_t>(copies.size());
    succeeded_ = true;
  }

  void end_side_moves() {
    succeeded_ = true;
    const std::int64_t draw = uniform(random_, 0, 5);
    if (model_.was_given_up() || draw == 0) {
      for (PageAllocator* it : {&allocator_, &replica_}) it->cancel_moves();
      return model_.cancelled_moves();
    }
    if (draw == 1) {
      for (PageAllocator* it : {&allocator_, &replica_}) it->give_up_moves();
      EXPECT_THROW(allocator_.give_up_moves(), InvalidArgument);
      EXPECT_THROW(allocator_.finish_moves(), InvalidArgument);
      return model_.gave_up_moves();
    }
    const std::int64_t moved = allocator_.finish_moves();
    ASSERT_EQ(replica_.finish_moves(), moved);
    pointless_moves_ += static_cast<int>(started_ - moved);
    model_.finished_moves(allocator_, moved);
  }

  void refuse_to_move() {
    EXPECT_THROW(allocator_.start_rebalance(1), InvalidArgument);
    EXPECT_THROW(allocator_.start_rebalance_now({}), InvalidArgument);
    EXPECT_THROW(allocator_.start_resize(any_rank(), 0), InvalidArgument);
  }

  /// Operations that are invalid in every state, on good and on stale ids.
  void misuse() {
    const SequenceId id = any();
    const std::int64_t past = length(id) + 1;
    ASSERT_THROW(allocator_.reserve(id, -1), InvalidArgument);
    ASSERT_THROW(allocator_.append(id, -1), InvalidArgument);
    ASSERT_THROW(allocator_.start_rebalance(-1), InvalidArgument);
    const RebalanceOptions no_rank{.leaving = PageRank{options_.ranks}};
    ASSERT_THROW(allocator_.start_rebalance_now({.limit = -1}), InvalidArgument);
    ASSERT_THROW(allocator_.start_rebalance_now(no_rank), InvalidArgument);
    ASSERT_THROW(allocator_.start_resize(PageRank{options_.ranks}, 0), InvalidArgument);
    ASSERT_THROW(allocator_.start_resize(any_rank(), options_.pages_per_rank + 1), InvalidArgument);
    ASSERT_THROW(allocator_.truncate(id, past), InvalidArgument);
    ASSERT_THROW(allocator_.make_writable(id, 0, allocator_.capacity(id) + 1), InvalidArgument);
    std::vector<AppendRequest> requests = draw_batch();
    requests.push_back(requests.front());
    ASSERT_THROW(allocator_.append(requests), InvalidArgument);
    if (erased_.empty()) return;
    const SequenceId stale = erased_[random_() % erased_.size()];
    requests.back().sequence = stale;
    ASSERT_THROW(allocator_.append(requests), UnknownSequence);
    ASSERT_THROW((void)allocator_.try_append(requests), UnknownSequence);
    ASSERT_THROW(allocator_.fork(stale), UnknownSequence);
    ASSERT_THROW(allocator_.truncate(stale, 0), UnknownSequence);
    ASSERT_THROW(allocator_.erase(stale), UnknownSequence);
    ASSERT_FALSE(allocator_.contains(stale));
  }

  AllocatorOptions options_;
  std::mt19937_64 random_;
  PageAllocator allocator_;
  PageAllocator replica_;
  test::Model model_;
  std::vector<SequenceId> erased_;
  bool succeeded_ = false;
  int refusals_ = 0;
  int copies_ = 0;
  int moves_ = 0;
  int side_moves_ = 0;
  int pointless_moves_ = 0;
  std::int64_t started_ = 0;
};

class Properties : public testing::TestWithParam<Placement> {};

TEST_P(Properties, RandomOperationsMatchTheModel) {
  SCOPED_TRACE(test::seed_note());
  std::mt19937_64 random(test::seed());
  int refusals = 0;
  int copies = 0;
  int moves = 0;
  int side_moves = 0;
  int pointless_moves = 0;
  for (int ranks = 1; ranks <= 8; ++ranks)
    for (int page_size = 1; page_size <= 17; ++page_size) {
      AllocatorOptions options{.ranks = ranks,
                               .pages_per_rank = uniform(random, 1, 24 / ranks + 2),
                               .page_size = page_size,
                               .placement = GetParam(),
                               .home_threshold_tokens = uniform(random, 0, 4 * page_size)};
      SCOPED_TRACE(testing::Message() << "ranks " << ranks << ", pages per rank "
                                      << options.pages_per_rank << ", page size " << page_size
                                      << ", threshold " << options.home_threshold_tokens);
      if (page_size % 2 == 0)
        for (int rank = 0; rank < ranks; ++rank)
          options.pool_pages.push_back(uniform(random, 0, options.pages_per_rank));
      Driver driver(options, random());
      const std::int64_t steps = test::operations(400, 1.0 / (3 * 8 * 17));
      for (std::int64_t step = 0; step < steps; ++step) {
        SCOPED_TRACE(testing::Message() << "step " << step);
        driver.step();
        if (HasFatalFailure()) return;
      }
      refusals += driver.refusals();
      copies += driver.copies();
      moves += driver.moves();
      side_moves += driver.side_moves();
      pointless_moves += driver.pointless_moves();
    }
  // The cases that matter were reached.
  EXPECT_GT(refusals, 500);
  EXPECT_GT(copies, 500);
  EXPECT_GT(moves, 100);
  EXPECT_GT(side_moves, 200);
  EXPECT_GT(pointless_moves, 10);
}

INSTANTIATE_TEST_SUITE_P(Placements, Properties,
                         testing::Values(Placement::kBalanced, Placement::kStriped,
                                         Placement::kPacked),
                         [](const auto& test) { return std::string(name(test.param)); });

}  // namespace
}  // namespace kvmesh
