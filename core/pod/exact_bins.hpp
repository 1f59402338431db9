// Sums whose bits do not depend on the order of their terms, for the host, nvcc and NVRTC: it needs
// <cstdint> alone.
//
// The numbers are cut by a grid of bins, each 40 binary places wide, which does not depend on them:
//
//   bin          1               0              -1
//   unit       2^40              1             2^-40
//   value = high * unit(top) + low * unit(top - 1)
//
// A sum keeps two 64-bit integers, in the units of its top bin and of the one below. A term x with
// |x| < unit(bin + 1) / 2 belongs to bin `bin`, and adds to a sum with that top
//   high += rint(x / unit(bin)),   low += rint(rest / unit(bin - 1)),
// where the rest is exact. To a sum with top bin + 1 the same term would add high 0 and low rint(x
// / unit(bin)): the `high` from before. So a sum whose top rises moves its high to low, drops its
// low, and has the bits that it would have had if the top had been known from the start. Integers
// are summed in any order, hence the result is a function of the set of terms.
//
// Each term is off by at most half a unit of the lower bin: 2^-41 of the largest term's bin, and
// 2^-80 of the upper end of it. Source: the binned sums of Demmel and Nguyen, "Parallel
// Reproducible Summation", 2015, with integers for the bins.
#pragma once

#include <cstdint>

namespace kvmesh {

inline constexpr int kBinBits = 40;
/// Terms are below 2^39 units, so as many of them fit into 63 bits.
inline constexpr std::int64_t kMostExactTerms = std::int64_t{1} << (63 - (kBinBits - 1));

/// The top bin of a sum without a term; every bin of a number is above.
inline constexpr std::int32_t kNoBin = -(std::int32_t{1} << 29);
/// Above the bin of every number: the sum has a term that is infinite or no number, and stays so.
inline constexpr std::int32_t kNotFinite = std::int32_t{1} << 29;

/// The bin of a term x with |x| < 2^exponent: exponent / 40, rounded down.
constexpr std::int32_t bin_of(std::int32_t exponent) {
  const std::int32_t up = exponent >= 0 ? exponent : exponent - (kBinBits - 1);
  return up / kBinBits;
}

/// 2^exponent. REQUIRES: |exponent| < 1023.
constexpr double power_of_two(std::int32_t exponent) {
  return __builtin_bit_cast(double, (static_cast<std::int64_t>(exponent) + 1023) << 52);
}

/// Added to |x| < 2^51 it leaves rint(x), ties to even, in the low bits of the double.
inline constexpr double kRoundingOffset = 6755399441055744.0;  // 1.5 * 2^52

/// rint(x), as an integer. REQUIRES: |x| < 2^51.
constexpr std::int64_t rounded_to_integer(double x) {
  return __builtin_bit_cast(std::int64_t, x + kRoundingOffset) -
         __builtin_bit_cast(std::int64_t, kRoundingOffset);
}

/// One sum.
struct ExactSum {
  std::int64_t high = 0;
  std::int64_t low = 0;
};

/// Brings a sum from bin `from` to the top bin `to`. REQUIRES: from <= to.
constexpr ExactSum raised(ExactSum sum, std::int32_t from, std::int32_t to) {
  if (from == to) return sum;
  return {0, from == to - 1 ? sum.high : 0};
}

/// Adds x * 2^exponent, a term of bin `bin`, to a sum with the top bin `top`.
/// REQUIRES: bin <= top; |x * 2^exponent| < 2^(40 * (bin + 1) - 1).
constexpr void add_term(ExactSum& sum, std::int32_t top, double x, std::int32_t exponent,
                        std::int32_t bin) {
  if (bin < top - 1) return;
  const double low_scale = power_of_two(exponent - kBinBits * (top - 1));
  if (bin == top) {
    const double high_scale = power_of_two(exponent - kBinBits * top);
    const std::int64_t units = rounded_to_integer(x * high_scale);
    sum.high += units;
    x -= static_cast<double>(units) * power_of_two(kBinBits * top - exponent);
  }
  sum.low += rounded_to_integer(x * low_scale);
}

/// The value of a sum in units of the bin below its top.
constexpr double in_low_units(ExactSum sum) {
  return static_cast<double>(sum.high) * power_of_two(kBinBits) + static_cast<double>(sum.low);
}

}  // namespace kvmesh
