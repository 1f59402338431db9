// Sums in limbs have the integers of exact_bins.hpp, whatever the order of their terms.
#include "core/pod/exact_limbs.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace kvmesh {
namespace {

struct Term {
  float x;
  std::int32_t exponent;
};

/// Terms of many sizes: the largest are about 2^(centre + spread).
std::vector<Term> random_terms(std::uint64_t seed, int count, int centre, int spread) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<float> real(-1, 1);
  std::uniform_int_distribution<int> place(-spread, spread);
  std::vector<Term> terms;
  for (int i = 0; i < count; ++i) {
    terms.push_back({std::ldexp(real(random), place(random)), centre + place(random)});
  }
  return terms;
}

std::int32_t top_of(const std::vector<Term>& terms) {
  std::int32_t top = kNoBin;
  for (const Term& term : terms) {
    if (term.x != 0) top = std::max(top, bin_of_term(std::abs(term.x), term.exponent));
  }
  return top;
}

/// As a thread of a GPU does it: the bin rises when a term needs it.
ExactSum sum_in_limbs(const std::vector<Term>& terms) {
  ExactLimbs limbs = zero_limbs(0);
  std::int32_t top = kNoBin;
  std::uint32_t count = 0;
  for (const Term& term : terms) {
    if (!(scale_to(top, term.exponent)(std::abs(term.x)) < kTermLimit)) {
      const std::int32_t bin = bin_of_term(std::abs(term.x), term.exponent);
      EXPECT_GT(bin, top);
      raise(limbs, top, bin, count);
      top = bin;
    }
    add_term(limbs, scale_to(top, term.exponent)(term.x));
    ++count;
  }
  EXPECT_EQ(top, top_of(terms));
  return sum_of(without_offsets(limbs, count));
}

ExactSum sum_in_bins(const std::vector<Term>& terms) {
  const std::int32_t top = top_of(terms);
  ExactSum sum;
  for (const Term& term : terms) {
    if (term.x == 0) continue;
    add_term(sum, top, term.x, term.exponent, bin_of_term(std::abs(term.x), term.exponent));
  }
  return sum;
}

void expect_equal(const ExactSum& a, const ExactSum& b) {
  EXPECT_EQ(a.high, b.high);
  EXPECT_EQ(a.low, b.low);
}

TEST(ExactLimbs, HaveTheIntegersOfTheBins) {
  for (const int spread : {3, 12, 30, 60}) {
    for (const int centre : {0, 17, -39, -300, 555}) {
      SCOPED_TRACE(testing::Message() << centre << " +- " << spread);
      std::vector<Term> terms =
          random_terms(7 + static_cast<std::uint64_t>(spread), 1500, centre, spread);
      const ExactSum want = sum_in_bins(terms);
      EXPECT_NE(want.high, 0);
      expect_equal(sum_in_limbs(terms), want);
      std::ranges::reverse(terms);
      expect_equal(sum_in_limbs(terms), want);
      std::ranges::sort(terms, {}, [](const Term& term) { return term.exponent; });
      expect_equal(sum_in_limbs(terms), want);
    }
  }
}

TEST(ExactLimbs, RoundTiesToEven) {
  // Halves of the units of each limb of bin 0.
  for (const float x : {0.5f, 1.5f, -0.5f, -2.5f, 0x1p19f, 0x1.8p20f, -0x1.8p20f, 0x1.4p21f,
                        0x1p-41f, 0x1.8p-40f, -0x1p-41f, 0x1p-21f, 0x1.8p-21f}) {
    expect_equal(sum_in_limbs({{0x1p30f, 0}, {x, 0}}), sum_in_bins({{0x1p30f, 0}, {x, 0}}));
  }
}

TEST(ExactLimbs, TakeAsManyTermsAsTheySay) {
  const float largest = std::nextafter(kTermLimit, 0.0f);
  for (const float x : {largest, -largest, 0x1.8p38f, 0x1.fffffep18f, -0x1.fffffep-2f, 0x1p-22f}) {
    const std::vector<Term> terms(kMostLimbTerms, {x, 0});
    ExactLimbs limbs = zero_limbs(0);
    for (const Term& term : terms) add_term(limbs, scale_to(0, 0)(term.x));
    ExactSum want;
    for (const Term& term : terms)
      add_term(want, 0, term.x, 0, std::min(0, bin_of_term(std::abs(x), 0)));
    expect_equal(sum_of(without_offsets(limbs, kMostLimbTerms)), want);
  }
}

TEST(ExactLimbs, OffsetsOfTermsThatAre0ComeOff) {
  ExactLimbs limbs = zero_limbs(3);
  add_term(limbs, 1048577.5f);
  for (int i = 0; i < 5; ++i) add_term(limbs, 0.0f);
  expect_equal(sum_of(without_offsets(limbs, 9)), {1048578, -(std::int64_t{1} << 39)});
}

TEST(ExactLimbs, BinsOfSubnormalNumbersAreTheirOwn) {
  const float least = std::numeric_limits<float>::denorm_min();  // 2^-149
  EXPECT_EQ(bin_of_term(1.0f, 38), 0);
  EXPECT_EQ(bin_of_term(1.0f, 39), 1);
  EXPECT_EQ(bin_of_term(least, 149 + 38), 0);
  EXPECT_EQ(bin_of_term(least, 149 + 39), 1);
  EXPECT_EQ(bin_of_term(3 * least, 149 + 37), 0);
  EXPECT_EQ(bin_of_term(3 * least, 149 + 38), 1);
  expect_equal(sum_in_limbs({{least, 149}, {-5 * least, 151}}), {-19, 0});
}

TEST(TermScale, ReportsTermsThatNeedAHigherBin) {
  const auto fits = [](float x, std::int32_t exponent, std::int32_t top) {
    return scale_to(top, exponent)(x) < kTermLimit;
  };
  for (const float x : {1.0f, 1.99f, 0x1p-140f, 0x1.8p127f, 0x1p-149f}) {
    for (const std::int32_t exponent : {0, -4000000, 3999999, 700, 38}) {
      const std::int32_t bin = bin_of_term(x, exponent);
      EXPECT_TRUE(fits(x, exponent, bin)) << x << " " << exponent;
      EXPECT_FALSE(fits(x, exponent, bin - 1)) << x << " " << exponent;
      EXPECT_TRUE(fits(x, exponent, kNotFinite));
      EXPECT_FALSE(fits(x, exponent, kNoBin));
      EXPECT_TRUE(fits(0.0f, exponent, kNoBin));
    }
  }
  EXPECT_FALSE(fits(std::numeric_limits<float>::quiet_NaN(), 0, kNotFinite));
  EXPECT_FALSE(fits(std::numeric_limits<float>::infinity(), 0, kNotFinite));
}

}  // namespace
}  // namespace kvmesh
