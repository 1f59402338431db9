// A prefix cache of states: a match has a state that is of all its tokens.
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <vector>

#include "kvmesh/allocator.hpp"
#include "tests/allocator/seed.hpp"

namespace kvmesh {
namespace {

using test::uniform;
using Tokens = std::vector<std::int32_t>;

AllocatorOptions state_options(std::int64_t pages, int ranks = 1) {
  return {.ranks = ranks,
          .pages_per_rank = pages,
          .page_size = std::numeric_limits<int>::max(),
          .prefix = {.enabled = true, .hash = PrefixHash::kXxh3, .compares_tokens = true},
          .state_interval = 4};
}

PrefixKey key_of(const PageAllocator& allocator, const Tokens& tokens) {
  PrefixKey key(allocator.prefix_rules());
  key.append(tokens);
  return key;
}

TEST(StatePrefix, AMatchEndsAtThePositionOfAState) {
  PageAllocator allocator(state_options(8));
  EXPECT_EQ(allocator.prefix_rules().page_size, 4);
  const PrefixKey key = key_of(allocator, Tokens(14, 7));
  const SequenceId sequence = allocator.create();
  allocator.append(sequence, 8);
  const PageId state = allocator.pages(sequence)[0];
  allocator.publish(sequence, key);
  EXPECT_EQ(allocator.cached_tokens(key), 8);
  EXPECT_EQ(allocator.cached_tokens(key, 7), 0) << "no state of fewer tokens";
  const std::vector<PageCopy> copies = allocator.append(sequence, 6);
  ASSERT_EQ(copies.size(), 1u) << "a published state is never written";
  EXPECT_EQ(copies[0].source, state);
  allocator.publish(sequence, key);
  EXPECT_EQ(allocator.cached_tokens(key), 8) << "14 tokens fill no whole pages";

  const PrefixMatch match = allocator.match_prefix(key);
  EXPECT_EQ(match.tokens, 8);
  EXPECT_EQ(allocator.pages(match.pin).size(), 1u);
  EXPECT_EQ(allocator.pages(match.pin)[0], state);
  EXPECT_EQ(allocator.length(allocator.create_with_prefix(match)), 8);
  allocator.verify_integrity();
}

TEST(StatePrefix, OneStateOfEqualTokensRemains) {
  PageAllocator allocator(state_options(4));
  const PrefixKey key = key_of(allocator, Tokens(8, 1));
  const SequenceId first = allocator.create(), second = allocator.create();
  for (const SequenceId it : {first, second}) {
    allocator.append(it, 8);
    allocator.publish(it, key);
  }
  EXPECT_EQ(allocator.pages(first)[0], allocator.pages(second)[0]);
  EXPECT_EQ(allocator.free_pages(), 3);
  // A state that was truncated is of more tokens than the sequence has: it gets no second name.
  allocator.truncate(second, 4);
  allocator.publish(second, key);
  EXPECT_EQ(allocator.cached_tokens(key, 4), 0);
  allocator.erase(first);
  allocator.erase(second);
  EXPECT_EQ(allocator.cached_pages(), 1);
  allocator.verify_integrity();
}

TEST(StatePrefix, RefusesWhatStatesCannotDo) {
  AllocatorOptions options = state_options(4);
  options.window = 8;
  EXPECT_THROW(PageAllocator{options}, InvalidArgument);
  options.window = 0;
  options.state_interval = -1;
  EXPECT_THROW(PageAllocator{options}, InvalidArgument);
  PageAllocator allocator(state_options(4));
  const PrefixKey key = key_of(allocator, Tokens(8, 1));
  EXPECT_THROW(allocator.bring_back(key, 2, std::vector<PageRank>(2)), InvalidArgument);
  EXPECT_THROW(allocator.match_prefix(PrefixKey(PrefixRules{.page_size = 8})), InvalidArgument);
  options.state_interval = 8;
  EXPECT_NE(PageAllocator(options).digest(), allocator.digest());
}

/// Sequences whose states are a number of all their tokens, beside a replica.
class States {
 public:
  States(const AllocatorOptions& options, std::uint64_t seed)
      : random_(seed), allocator_(options), replica_(options) {}

  void step() {
    const std::int64_t draw = uniform(random_, 0, 99);
    if (sequences_.empty() || (draw < 30 && sequences_.size() < 5)) {
      arrive();
    } else if (draw < 55) {
      extend(any());
    } else if (draw < 75) {
      publish(any());
    } else if (draw < 82) {
      fork(any());
    } else if (draw < 90) {
      move();
    } else {
      erase(static_cast<std::size_t>(uniform(random_, 0, std::ssize(sequences_) - 1)));
    }
    allocator_.verify_integrity();
    ASSERT_EQ(allocator_.digest(), replica_.digest());
    for (const One& it : sequences_) expect_state(it.id, it.tokens);
  }
  int hits = 0, moved = 0;

 private:
  struct One {
    SequenceId id;
    Tokens tokens;
  };
  One& any() {
    return sequences_[static_cast<std::size_t>(uniform(random_, 0, std::ssize(sequences_) - 1))];
  }
  Tokens draw_tokens(std::int64_t count) {
    Tokens tokens(static_cast<std::size_t>(count));
    for (std::int32_t& token : tokens) token = uniform(random_, 0, 14) == 0 ? 1 : 0;
    return tokens;
  }

  void expect_state(SequenceId id, const Tokens& tokens) {
    ASSERT_EQ(allocator_.length(id), std::ssize(tokens));
    if (tokens.empty()) return;
    ASSERT_EQ(allocator_.pages(id).size(), 1u);
    ASSERT_EQ(states_[allocator_.pages(id)[0]], tokens);
  }

  void arrive() {
    Tokens tokens = draw_tokens(uniform(random_, 1, 20));
    const PrefixKey key = key_of(allocator_, tokens);
    const PrefixMatch match = allocator_.match_prefix(key);
    ASSERT_EQ(replica_.match_prefix(key).pin, match.pin);
    hits += match.tokens > 0;
    tokens.resize(static_cast<std::size_t>(match.tokens));
    expect_state(match.pin, tokens);
    allocator_.create_with_prefix(match);
    replica_.create_with_prefix(match);
    sequences_.push_back({match.pin, tokens});
  }

  /// To the end of a page as often as not.
  void extend(One& one) {
    std::int64_t count = uniform(random_, 1, 9);
    if (count > 4) count = 4 - std::ssize(one.tokens) % 4;
    const AppendRequest more{one.id, count};
    const auto copies = allocator_.try_append({&more, 1});
    ASSERT_EQ(copies.has_value(), replica_.try_append({&more, 1}).has_value());
    if (!copies) return;
    for (const PageCopy& copy : *copies) states_[copy.destination] = states_[copy.source];
    const Tokens added = draw_tokens(count);
    one.tokens.insert(one.tokens.end(), added.begin(), added.end());
    const PageId page = allocator_.pages(one.id)[0];
    ASSERT_TRUE(allocator_.is_writable(page));
    states_[page] = one.tokens;
  }

  void publish(One& one) {
    const PrefixKey key = key_of(allocator_, one.tokens);
    std::vector<Retention> retentions;
    if (uniform(random_, 0, 3) == 0) retentions.push_back({0, 8, 60, uniform(random_, 0, 50)});
    for (PageAllocator* it : {&allocator_, &replica_}) it->publish(one.id, key, retentions);
  }

  void fork(One& one) {
    if (sequences_.size() >= 5) return;
    const SequenceId child = allocator_.fork(one.id);
    ASSERT_EQ(replica_.fork(one.id), child);
    sequences_.push_back({child, Tokens(one.tokens)});
  }

  void move() {
    const PageRank rank{
        static_cast<std::int32_t>(uniform(random_, 0, allocator_.options().ranks - 1))};
    const std::int64_t size = uniform(random_, 0, allocator_.options().pages_per_rank);
    const auto copies = allocator_.try_start_resize(rank, size);
    ASSERT_EQ(copies.has_value(), replica_.try_start_resize(rank, size).has_value());
    if (!copies) return;
    for (const PageCopy& copy : *copies) states_[copy.destination] = states_[copy.source];
    for (PageAllocator* it : {&allocator_, &replica_}) it->finish_moves();
    for (const PageCopy& copy : *copies) states_[copy.source] = {-1};
    moved += static_cast<int>(copies->size());
  }

  void erase(std::size_t at) {
    allocator_.erase(sequences_[at].id);
    replica_.erase(sequences_[at].id);
    sequences_.erase(sequences_.begin() + static_cast<std::ptrdiff_t>(at));
  }

  std::mt19937_64 random_;
  PageAllocator allocator_, replica_;
  std::vector<One> sequences_;
  std::map<PageId, Tokens> states_;
};

TEST(StatePrefix, RandomSequencesFindOnlyStatesOfTheirTokens) {
  SCOPED_TRACE(test::seed_note());
  std::mt19937_64 random(test::seed());
  int hits = 0, moved = 0;
  for (int ranks = 1; ranks <= 3; ++ranks) {
    States states(state_options(12 / ranks, ranks), random());
    for (std::int64_t step = 0; step < test::operations(4500, 0.1 / 3); ++step) {
      SCOPED_TRACE(testing::Message() << "ranks " << ranks << " step " << step);
      states.step();
      if (HasFatalFailure()) return;
    }
    hits += states.hits;
    moved += states.moved;
  }
  EXPECT_GT(hits, 100);
  EXPECT_GT(moved, 20);
}

}  // namespace
}  // namespace kvmesh
