// Exact rows: any order and grouping of the same terms gives the same bytes.
#include "core/numbers/exact_rows.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace kvmesh {
namespace {

constexpr int kDim = 16;

struct Term {
  std::vector<float> o;
  float weight;
  std::int32_t exponent;
};

// Sizes over `spread` binary places around 2^centre.
std::vector<Term> random_terms(std::mt19937_64& random, int count, int centre, int spread) {
  std::uniform_real_distribution<float> real(-1, 1);
  std::uniform_int_distribution<int> place(-spread, spread);
  std::vector<Term> terms;
  for (int i = 0; i < count; ++i) {
    Term term{.o = {}, .weight = 1.0f + std::abs(real(random)), .exponent = centre + place(random)};
    for (int d = 0; d < kDim; ++d) {
      term.o.push_back(std::ldexp(real(random), place(random) % 30));
    }
    terms.push_back(term);
  }
  return terms;
}

class OwnedRow {
 public:
  OwnedRow() : memory_(static_cast<std::size_t>(ExactRows::row_bytes(kDim)) / 8) {
    clear_row(row(), kDim);
  }
  ExactRow row() { return ExactRows(memory_.data(), kDim).row(0); }
  void add(const Term& term) {
    const ExactRow to = row();
    add_weight(*to.head, term.weight, term.exponent);
    to.head->max = std::max(to.head->max, static_cast<float>(term.exponent) * 0.6931f);
    float most = 0;
    for (float x : term.o) most = std::max(most, std::abs(x));
    const std::int32_t bin = bin_of(term.exponent + bound_of(std::bit_cast<std::int32_t>(most)));
    raise_outputs(to, kDim, bin);
    for (int d = 0; d < kDim; ++d) {
      ExactSum sum{to.high[d], to.low[d]};
      add_term(sum, to.head->o_bin, term.o[static_cast<std::size_t>(d)], term.exponent, bin);
      to.high[d] = sum.high;
      to.low[d] = sum.low;
    }
  }
  void merge(OwnedRow& other) { merge_row(row(), other.row(), kDim); }
  std::vector<float> finish() {
    std::vector<float> o(kDim + 1);
    o.back() = finish_row(row(), o.data(), kDim);
    return o;
  }
  friend bool operator==(const OwnedRow& a, const OwnedRow& b) { return a.memory_ == b.memory_; }

 private:
  std::vector<std::int64_t> memory_;
};

TEST(ExactBins, RoundDownAlsoBelowZero) {
  EXPECT_EQ(bin_of(0), 0);
  EXPECT_EQ(bin_of(39), 0);
  EXPECT_EQ(bin_of(40), 1);
  EXPECT_EQ(bin_of(-1), -1);
  EXPECT_EQ(bin_of(-40), -1);
  EXPECT_EQ(bin_of(-41), -2);
}

TEST(ExactBins, RoundToTheNearestEvenInteger) {
  for (const auto& [x, want] : {std::pair{0.5, 0}, {1.5, 2}, {-0.5, 0}, {-2.5, -2}, {2.51, 3}}) {
    EXPECT_EQ(rounded_to_integer(x), want) << x;
  }
  EXPECT_EQ(rounded_to_integer(0x1p39 + 1), (std::int64_t{1} << 39) + 1);
}

TEST(ExactRows, HaveTheSameBytesInAnyOrderAndGrouping) {
  for (const auto& [centre, spread] : {std::pair{0, 3}, {-7, 60}, {5000, 200}, {-4'000'000, 9}}) {
    std::mt19937_64 random(7);
    std::vector<Term> terms = random_terms(random, 200, centre, spread);
    OwnedRow first;
    for (const Term& term : terms) first.add(term);
    for (int ranks : {1, 2, 3, 8}) {
      std::ranges::shuffle(terms, random);
      std::vector<OwnedRow> parts(static_cast<std::size_t>(ranks));
      for (const Term& term : terms) parts[random() % parts.size()].add(term);
      OwnedRow all;
      for (OwnedRow& part : parts) all.merge(part);
      EXPECT_EQ(all, first) << ranks << " parts around 2^" << centre;
    }
  }
}

TEST(ExactRows, AreAsExactAsTheirResult) {
  std::mt19937_64 random(3);
  const std::vector<Term> terms = random_terms(random, 500, 2, 12);
  OwnedRow row;
  long double sum = 0;
  std::vector<long double> o(kDim);
  for (const Term& term : terms) {
    row.add(term);
    sum += std::ldexp(static_cast<long double>(term.weight), term.exponent);
    for (std::size_t d = 0; d < kDim; ++d) {
      o[d] += std::ldexp(static_cast<long double>(term.o[d]), term.exponent);
    }
  }
  const std::vector<float> got = row.finish();
  for (std::size_t d = 0; d < kDim; ++d) {
    const auto want = static_cast<double>(o[d] / sum);
    EXPECT_NEAR(got[d], want, std::abs(want) * 0x1p-24 + 0x1p-38) << d;
  }
  EXPECT_NEAR(got.back(), static_cast<double>(std::log(sum)), 1e-6);
}

TEST(ExactRows, StartWithoutKeys) {
  OwnedRow row, other;
  row.merge(other);
  const std::vector<float> got = row.finish();
  EXPECT_EQ(got[0], 0.0f);
  EXPECT_EQ(got.back(), kNoKeys);
}

TEST(ExactRows, KeepNanAndInfinity) {
  std::mt19937_64 random(5);
  const std::vector<Term> terms = random_terms(random, 9, 0, 5);
  for (const bool of_score : {true, false}) {
    OwnedRow row, bad;
    for (const Term& term : terms) row.add(term);
    if (of_score) {
      bad.row().head->max = std::numeric_limits<float>::quiet_NaN();
    } else {
      bad.add(terms[0]);
      raise_outputs(bad.row(), kDim, kNotFinite);
    }
    OwnedRow before = bad;
    before.merge(row);
    row.merge(bad);
    for (OwnedRow* merged : {&before, &row}) {
      const std::vector<float> got = merged->finish();
      EXPECT_TRUE(std::isnan(got[0]));
      EXPECT_EQ(std::isnan(got.back()), of_score);
    }
  }
}

}  // namespace
}  // namespace kvmesh
