#include "core/numbers/exact_rows.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

namespace kvmesh {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

float exact_max(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return kNan;
  return std::max(a, b);
}

// log of the sum of exp(score).
double log_of(const ExactRowHead& head) {
  return std::log(in_low_units(head.sum)) + kBinBits * (head.sum_bin - 1) * std::numbers::ln2;
}

}  // namespace

void clear_row(const ExactRow& row, std::int64_t dim) {
  *row.head = {.max = kNoKeys, .o_bin = kNoBin, .sum_bin = kNoBin, .unused = 0, .sum = {}};
  std::fill_n(row.high, 2 * dim, std::int64_t{0});  // and the low ones behind
}

void raise_outputs(const ExactRow& row, std::int64_t dim, std::int32_t bin) {
  const std::int32_t from = row.head->o_bin;
  if (bin <= from) return;
  for (std::int64_t i = 0; i < dim; ++i) {
    const ExactSum sum = raised({row.high[i], row.low[i]}, from, bin);
    row.high[i] = sum.high;
    row.low[i] = sum.low;
  }
  row.head->o_bin = bin;
}

void merge_row(const ExactRow& row, const ExactRow& from, std::int64_t dim) {
  ExactRowHead& head = *row.head;
  head.max = exact_max(head.max, from.head->max);
  const std::int32_t sum_bin = std::max(head.sum_bin, from.head->sum_bin);
  const ExactSum mine = raised(head.sum, head.sum_bin, sum_bin);
  const ExactSum other = raised(from.head->sum, from.head->sum_bin, sum_bin);
  head.sum = {mine.high + other.high, mine.low + other.low};
  head.sum_bin = sum_bin;

  raise_outputs(row, dim, from.head->o_bin);
  const std::int32_t below = head.o_bin - from.head->o_bin;
  if (below == 0) {
    for (std::int64_t i = 0; i < 2 * dim; ++i) row.high[i] += from.high[i];  // high and low
  } else if (below == 1) {
    for (std::int64_t i = 0; i < dim; ++i) row.low[i] += from.high[i];
  }
}

float finish_row(const ExactRow& row, float* o, int v_dim) {
  const ExactRowHead& head = *row.head;
  if (std::isnan(head.max) || head.o_bin == kNotFinite) {
    std::fill_n(o, v_dim, kNan);
  } else if (head.o_bin == kNoBin) {
    std::fill_n(o, v_dim, 0.0f);
  } else {
    const double scale =
        std::ldexp(1.0 / in_low_units(head.sum), kBinBits * (head.o_bin - head.sum_bin));
    for (int i = 0; i < v_dim; ++i) {
      o[i] = static_cast<float>(in_low_units({row.high[i], row.low[i]}) * scale);
    }
  }
  if (std::isnan(head.max) || head.max == kNoKeys) return head.max;
  const float counted = std::clamp(head.max, -kLargestScore, kLargestScore);
  return static_cast<float>(log_of(head) + (double{head.max} - double{counted}));
}

}  // namespace kvmesh
