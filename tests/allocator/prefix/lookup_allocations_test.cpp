// Lookups take no memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "kvmesh/allocator.hpp"
#include "tests/support/counted_memory.hpp"

namespace kvmesh::test {
namespace {

constexpr int kPageSize = 4, kRanks = 3;
constexpr std::int32_t kPrompts = 20;

std::vector<std::int32_t> prompt(std::int32_t number) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(30 + 7 * number), 1000 + number);
  std::fill_n(tokens.begin(), 12, 5);  // they begin alike
  return tokens;
}

/// Keys that are cached as a whole, that end inside of a page, that go on with other tokens, and
/// that are not cached at all.
std::vector<PrefixKey> lookups(const PrefixRules& rules) {
  std::vector<PrefixKey> keys;
  const auto add = [&](std::vector<std::int32_t> tokens) {
    keys.emplace_back(rules);
    keys.back().append(tokens);
  };
  for (std::int32_t number = 0; number < kPrompts; ++number) {
    std::vector<std::int32_t> tokens = prompt(number);
    add(tokens);
    tokens.resize(22);
    add(tokens);
    tokens.resize(80, 1);
    add(tokens);
    add(std::vector<std::int32_t>(40, number));
  }
  return keys;
}

class Lookups : public testing::TestWithParam<Eviction> {};

TEST_P(Lookups, TakeNoMemory) {
  PageAllocator allocator(
      {.ranks = kRanks,
       .pages_per_rank = 400,
       .page_size = kPageSize,
       .home_threshold_tokens = 16,
       .prefix = {.enabled = true, .hash = PrefixHash::kXxh3, .eviction = GetParam()}});
  for (std::int32_t number = 0; number < kPrompts; ++number) {
    PrefixKey key(allocator.prefix_rules());
    key.append(prompt(number));
    const SequenceId id = allocator.create();
    allocator.append(id, std::ssize(key.tokens()));
    allocator.publish(id, key);
    allocator.erase(id);
  }
  const std::vector<PrefixKey> keys = lookups(allocator.prefix_rules());
  std::int64_t found = 0, misses = 0, partial = 0;
  const auto look_up = [&](const PrefixKey& key) {
    const PrefixMatch match = allocator.match_prefix(key);
    found += match.tokens;
    misses += match.tokens == 0;
    partial += match.tokens % kPageSize != 0;
    allocator.release(match);
  };
  for (const PrefixKey& key : keys) look_up(key);  // the longest takes its page table
  std::mt19937 random(3);
  const std::int64_t before = allocations();
  for (int i = 0; i < 2000; ++i) look_up(keys[random() % keys.size()]);
  EXPECT_EQ(allocations() - before, 0);
  EXPECT_GT(found, 10'000);
  EXPECT_GT(misses, 100);
  EXPECT_GT(partial, 100);
  const std::int64_t counted = allocations();
  const PrefixKey copy = keys.front();
  EXPECT_GT(allocations(), counted) << "nothing is counted";
  allocator.verify_integrity();
}

INSTANTIATE_TEST_SUITE_P(Policies, Lookups,
                         testing::Values(Eviction::kHits, Eviction::kTwoQueues, Eviction::kLru,
                                         Eviction::kS3Fifo, Eviction::kSegmented));

}  // namespace
}  // namespace kvmesh::test
