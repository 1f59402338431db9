// Tests what is learned from pages that come again after times that the tests choose.
#include "allocator/prefix/reuse_times.hpp"

#include <gtest/gtest.h>

#include <map>

namespace kvmesh {
namespace {

constexpr std::int64_t kPages = 1000;

/// Publishes pages at a steady pace. Of those that start to wait with `hits` hits, one in
/// `of[hits]` (0: none) comes again after `wait[hits]` published pages.
struct Uses {
  std::array<std::uint64_t, 3> of{}, wait{};
};

void run(ReuseTimes& times, const Uses& uses, std::uint64_t published) {
  std::multimap<std::uint64_t, int> next;  // use -> hits before it
  std::array<std::uint64_t, 3> started{};
  const auto start = [&](int hits) {
    times.started(hits);
    const auto at = static_cast<std::size_t>(hits);
    if (uses.of[at] != 0 && ++started[at] % uses.of[at] == 0)
      next.emplace(times.now() + uses.wait[at], hits);
  };
  for (std::uint64_t i = 0; i < published; ++i) {
    times.published();
    start(0);
    while (!next.empty() && next.begin()->first <= times.now()) {
      const int hits = next.begin()->second;
      next.erase(next.begin());
      times.ended(hits, uses.wait[static_cast<std::size_t>(hits)]);
      start(std::min(hits + 1, ReuseTimes::kMostHits));
    }
  }
}

TEST(ReuseTimes, StartsWithAGuess) {
  const ReuseTimes times(kPages);
  EXPECT_EQ(times.credit(0), 0u);
  EXPECT_EQ(times.credit(1), 750u);
  EXPECT_EQ(times.credit(2), 750u);
}

// One page in 20 comes for ever, every 5 pools: room for them, and for none of the others.
TEST(ReuseTimes, KeepsPagesThatComeAgainAfterManyPools) {
  ReuseTimes times(kPages);
  run(times, {.of = {200, 1, 1}, .wait = {5000, 5000, 5000}}, 60'000);
  EXPECT_GE(times.credit(1), 4000u);
  EXPECT_EQ(times.credit(0), 0u);
}

// All come again once, after half a pool, and then no more.
TEST(ReuseTimes, GivesNoCreditToPagesThatDoNotComeAgain) {
  ReuseTimes times(kPages);
  run(times, {.of = {1, 0, 0}, .wait = {400, 1, 1}}, 40'000);
  EXPECT_EQ(times.credit(1), 0u);
}

// Every second page comes again after 3 pools, but only those that came twice come for ever.
TEST(ReuseTimes, LearnsHowManyHitsMatter) {
  ReuseTimes times(kPages);
  run(times, {.of = {2, 100, 1}, .wait = {6000, 6000, 6000}}, 100'000);
  EXPECT_EQ(times.credit(1), 0u);
  EXPECT_GE(times.credit(2), 4000u);
}

TEST(ReuseTimes, ForgetsWhatWasLongAgo) {
  ReuseTimes times(kPages);
  run(times, {.of = {200, 1, 1}, .wait = {5000, 5000, 5000}}, 60'000);
  run(times, {.of = {1, 0, 0}, .wait = {400, 1, 1}}, 200'000);
  EXPECT_EQ(times.credit(1), 0u);
}

TEST(ReuseTimes, CountsNoWaitOfMorePoolsThanGhostsLast) {
  ReuseTimes times(1280);
  EXPECT_TRUE(times.ended(0, 16 * 1280 - 1));
  EXPECT_FALSE(times.ended(0, 16 * 1280));
}

// The smallest pools, and a pool that shrinks to nothing.
TEST(ReuseTimes, LearnsInPoolsOfAnySize) {
  for (const std::int64_t pages : {1, 7, 127, 129}) {
    ReuseTimes times(pages);
    run(times, {.of = {3, 2, 2}, .wait = {9, 9, 9}}, 5'000);
    times.resize(0);
    run(times, {.of = {3, 2, 2}, .wait = {9, 9, 9}}, 1'000);
    EXPECT_LE(times.credit(1), 16u * 128);
  }
}

}  // namespace
}  // namespace kvmesh
