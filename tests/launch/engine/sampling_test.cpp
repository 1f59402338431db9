#include "launch/engine/sampling.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "kvmesh/error.hpp"

namespace kvmesh::engine {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::map<Token, int> draw(const SamplingOptions& options, const std::vector<float>& logits,
                          int draws) {
  Sampler sampler(options);
  std::map<Token, int> counts;
  for (int i = 0; i < draws; ++i) ++counts[sampler.pick(logits)];
  return counts;
}

TEST(Sampling, ArgmaxTakesTheLowestOfEqualsAndNeverNan) {
  EXPECT_EQ(argmax(std::vector<float>{1, 3, 3, 2}), 1);
  EXPECT_EQ(argmax(std::vector<float>{kNan, -5, kNan, -5}), 1);
  EXPECT_EQ(argmax(std::vector<float>{kNan, kNan}), 0);
}

TEST(Sampling, TemperatureZeroIsArgmax) {
  EXPECT_EQ(draw({}, {0, 2, 2, 1}, 10), (std::map<Token, int>{{1, 10}}));
}

TEST(Sampling, FrequenciesFollowTheSoftmax) {
  constexpr int kDraws = 40000;
  const std::vector<float> logits{0.0f, 1.0f, 2.0f};
  const auto counts = draw({.temperature = 2.0, .seed = 5}, logits, kDraws);
  double sum = 0.0;
  for (float logit : logits) sum += std::exp(static_cast<double>(logit) / 2.0);
  for (Token token = 0; token < 3; ++token) {
    const double p = std::exp(static_cast<double>(token) / 2.0) / sum;
    // Five standard deviations of a binomial count.
    EXPECT_NEAR(counts.at(token), kDraws * p, 5 * std::sqrt(kDraws * p * (1 - p)));
  }
}

TEST(Sampling, TopKKeepsTheLargestAndOfEqualsTheLowest) {
  const auto counts = draw({.temperature = 10.0, .top_k = 2, .seed = 6}, {1, 5, 1, 1}, 1000);
  EXPECT_EQ(counts.size(), 2u);
  EXPECT_TRUE(counts.contains(0) && counts.contains(1));
}

TEST(Sampling, TopPKeepsTheFewestThatReachIt) {
  // Probabilities 0.5, 0.25, 0.125, 0.125.
  const std::vector<float> logits{0.0f, std::log(2.0f), std::log(4.0f), 0.0f};
  EXPECT_EQ(draw({.temperature = 1.0, .top_p = 0.4, .seed = 7}, logits, 500).size(), 1u);
  const auto two = draw({.temperature = 1.0, .top_p = 0.7, .seed = 7}, logits, 500);
  EXPECT_EQ(two.size(), 2u);
  EXPECT_TRUE(two.contains(1) && two.contains(2));
  EXPECT_EQ(draw({.temperature = 1.0, .top_p = 1.0, .seed = 7}, logits, 500).size(), 4u);
}

TEST(Sampling, NanIsNeverPickedAndHugeLogitsDoNotOverflow) {
  const auto counts = draw({.temperature = 0.5, .seed = 8}, {kNan, 1e30f, 3e38f, kNan}, 100);
  EXPECT_EQ(counts, (std::map<Token, int>{{2, 100}}));
}

TEST(Sampling, TheSeedDecidesTheSequence) {
  const std::vector<float> logits(100, 0.0f);
  std::vector<Token> first;
  Sampler a({.temperature = 1.0, .seed = 42});
  Sampler b({.temperature = 1.0, .seed = 42});
  Sampler c({.temperature = 1.0, .seed = 43});
  int differ = 0;
  for (int i = 0; i < 50; ++i) {
    first.push_back(a.pick(logits));
    EXPECT_EQ(b.pick(logits), first.back());
    differ += c.pick(logits) != first.back();
  }
  EXPECT_GT(differ, 25);
  // mt19937_64 seeded with 42, its first output over 2^64, times 100: the same on every platform.
  EXPECT_EQ(first[0], 75);
}

TEST(Sampling, RejectsInvalidOptions) {
  EXPECT_THROW(Sampler({.temperature = -1.0}), InvalidArgument);
  EXPECT_THROW(Sampler({.temperature = std::nan("")}), InvalidArgument);
  EXPECT_THROW(Sampler({.top_k = -1}), InvalidArgument);
  EXPECT_THROW(Sampler({.top_p = 0.0}), InvalidArgument);
  EXPECT_THROW(Sampler({.top_p = 1.5}), InvalidArgument);
}

}  // namespace
}  // namespace kvmesh::engine
