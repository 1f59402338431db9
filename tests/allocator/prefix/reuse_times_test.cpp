// Tests what is learned from pages that come again after times that the tests choose.
#include "allocator/prefix/reuse_times.hpp"

#include <gtest/gtest.h>

#include <map>

namespace kvmesh {
namespace {

constexpr std::int64_t kPages = 1000;

/// Publishes pages at a steady pace. One in `of[hits]` (0: none) of the pages that start to wait
/// with `hits` hits comes again after `wait[hits]` published pages.
struct Uses {
  std::array<std::uint64_t, ReuseTimes::kMostHits + 1> of{}, wait{};
};

void run(ReuseTimes& times, const Uses& uses, std::uint64_t published) {
  std::multimap<std::uint64_t, int> next;  // use -> hits before it
  std::array<std::uint64_t, ReuseTimes::kMostHits + 1> started{};
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
  EXPECT_EQ(times.credit(0), 0);
  for (const int hits : {1, 2, 3}) EXPECT_EQ(times.credit(hits), kPages);
  EXPECT_EQ(times.credit(ReuseTimes::kEnd), 0);
}

// One page in 20 comes for ever, every 5 pools: room for them, and for none of the others.
TEST(ReuseTimes, KeepsPagesThatComeAgainAfterManyPools) {
  ReuseTimes times(kPages);
  run(times, {.of = {200, 1, 1, 1}, .wait = {5000, 5000, 5000, 5000}}, 60'000);
  EXPECT_GE(times.credit(1), 4000);
  EXPECT_EQ(times.credit(0), 0);
}

// All come again once, after half a pool, and then no more.
TEST(ReuseTimes, GivesNoCreditToPagesThatDoNotComeAgain) {
  ReuseTimes times(kPages);
  run(times, {.of = {1, 0, 0, 0}, .wait = {400, 1, 1, 1}}, 40'000);
  EXPECT_EQ(times.credit(1), 0);
}

// New pages come again after 2/5 of a pool, except each tenth, which nothing continues.
TEST(ReuseTimes, GivesEndsLessIfTheyDoNotComeAgain) {
  ReuseTimes times(kPages);
  std::multimap<std::uint64_t, int> next;
  for (int i = 0; i < 40'000; ++i) {
    times.published();
    times.started(ReuseTimes::kEnd);
    if (i % 10 != 0) {
      times.changed(ReuseTimes::kEnd, 0, times.now());
      next.emplace(times.now() + 400, 0);
    }
    for (; !next.empty() && next.begin()->first <= times.now(); next.erase(next.begin())) {
      times.ended(0, 400);
      times.started(1);
    }
  }
  EXPECT_LT(times.credit(ReuseTimes::kEnd), -300);
}

// Pages with one hit come again after 5 pools, those with more never. These are kept as long, since
// they are evicted with the pages after them.
TEST(ReuseTimes, NeverGivesMoreHitsLess) {
  ReuseTimes times(kPages);
  run(times, {.of = {20, 1, 0, 0}, .wait = {5000, 5000, 1, 1}}, 60'000);
  EXPECT_GT(times.credit(1), 0);
  EXPECT_GE(times.credit(2), times.credit(1));
  EXPECT_GE(times.credit(3), times.credit(2));
}

// Half of the new pages come again after 1/5 of a pool, and never later.
TEST(ReuseTimes, LearnsAfterTwoSizesOfThePool) {
  ReuseTimes times(kPages);
  run(times, {.of = {2, 0, 0, 0}, .wait = {200, 1, 1, 1}}, 4'000);
  EXPECT_LT(times.credit(1), kPages / 2);  // of the guess, a pool
}

// Every second page comes again after 3 pools, but only those that came twice come for ever.
TEST(ReuseTimes, LearnsHowManyHitsMatter) {
  ReuseTimes times(kPages);
  run(times, {.of = {2, 100, 1, 1}, .wait = {6000, 6000, 6000, 6000}}, 100'000);
  EXPECT_EQ(times.credit(1), 0);
  EXPECT_GE(times.credit(2), 4000);
  EXPECT_GE(times.credit(3), 4000);
}

TEST(ReuseTimes, ForgetsWhatWasLongAgo) {
  ReuseTimes times(kPages);
  run(times, {.of = {200, 1, 1, 1}, .wait = {5000, 5000, 5000, 5000}}, 60'000);
  run(times, {.of = {1, 0, 0, 0}, .wait = {400, 1, 1, 1}}, 200'000);
  EXPECT_EQ(times.credit(1), 0);
}

// All ends come again after two pools, of other pages seven tenths. A page continues these later.
TEST(ReuseTimes, GivesEndsMoreIfTheyComeAgain) {
  ReuseTimes times(kPages);
  for (std::uint64_t i = 0; i < 60'000; ++i) {
    times.published();
    times.started(ReuseTimes::kEnd);
    if (i >= 100 && i % 10 != 0) times.changed(ReuseTimes::kEnd, 0, times.now() - 100);
    if (i >= 2000 && i % 10 < 8) times.ended(i % 10 == 0 ? ReuseTimes::kEnd : 0, 2000);
  }
  EXPECT_GT(times.credit(ReuseTimes::kEnd), 0);
}

/// Seven tenths of the new pages come again after two pools. In each pool 100 pages with a hit are
/// held by sequences for this many published pages, and come again two pools after they were left.
/// Returns their credit.
std::int64_t credit_after_holding(std::uint64_t held) {
  ReuseTimes times(kPages);
  for (std::uint64_t i = 0; i < 60'000; ++i) {
    times.published();
    times.started(0);
    if (i >= 2000 && i % 10 < 7) times.ended(0, 2000);
    for (int page = 0; page < 100; ++page) {
      if (i % 1000 == 0) times.started(1);
      if (i >= held && (i - held) % 1000 == 0) times.released(1, times.now() - held);
      if (i >= held + 2000 && (i - held) % 1000 == 0) times.ended(1, 2000);
    }
  }
  return times.credit(1);
}

TEST(ReuseTimes, CountsAWaitFromTheTimeThatAPageWasLeft) {
  EXPECT_GT(credit_after_holding(0), kPages / 2);
  EXPECT_EQ(credit_after_holding(500), credit_after_holding(0));
}

// From the beginning on, each page comes again after 5/2 of a pool, once it has come twice. The
// learned credit is that of two sizes of the pool, in which no such wait ended.
TEST(ReuseTimes, IsPatientAsSoonAsThatGivesMoreHits) {
  ReuseTimes times(kPages);
  run(times, {.of = {10, 1, 1, 1}, .wait = {300, 2500, 2500, 2500}}, 4'000);
  EXPECT_GE(times.credit(1), 2 * kPages);
  EXPECT_LE(times.credit(ReuseTimes::kEnd), -kPages);
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
    run(times, {.of = {3, 2, 2, 2}, .wait = {9, 9, 9, 9}}, 5'000);
    times.resize(0);
    run(times, {.of = {3, 2, 2, 2}, .wait = {9, 9, 9, 9}}, 1'000);
    EXPECT_LE(times.credit(1), 16 * 128);
  }
}

}  // namespace
}  // namespace kvmesh
