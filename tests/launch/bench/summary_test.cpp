#include "launch/bench/summary.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

namespace kvmesh::bench {
namespace {

TEST(Summary, OfOneNumberIsThatNumber) {
  const std::vector<double> one{3.5};
  const Summary summary = summarise(one);
  for (double value : {summary.median, summary.p10, summary.p90, summary.min, summary.max}) {
    EXPECT_EQ(value, 3.5);
  }
}

TEST(Summary, TakesTheNearestRankInAnyOrder) {
  std::vector<double> values(20);
  std::iota(values.begin(), values.end(), 1.0);
  std::ranges::shuffle(values, std::mt19937(3));
  const Summary summary = summarise(values);
  EXPECT_EQ(summary.min, 1);
  EXPECT_EQ(summary.p10, 2);  // a tenth of them are at most this
  EXPECT_EQ(summary.median, 10);
  EXPECT_EQ(summary.p90, 18);
  EXPECT_EQ(summary.max, 20);
}

TEST(Summary, OfThreeNumbersHasTheExtremesAsPercentiles) {
  const std::vector<double> three{7, 1, 4};
  const Summary summary = summarise(three);
  EXPECT_EQ(summary.p10, 1);
  EXPECT_EQ(summary.median, 4);
  EXPECT_EQ(summary.p90, 7);
}

}  // namespace
}  // namespace kvmesh::bench
