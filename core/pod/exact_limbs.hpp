// The sums of exact_bins.hpp while a GPU adds to them: in 32-bit registers, by float32 alone. For
// the host, nvcc and NVRTC: it needs <cstdint> alone.
//
//   limb         0            1           2            3
//   unit       2^20           1         2^-20        2^-40      in units of the top bin
//             [------ high ------]     [------- low -------]
//
// A term y, in units of the top bin and below 2^39, leaves in each limb an integer of at most 2^19.
// The integer comes out of a float32 addition: y + offset has it in its low bits, rounded to
// nearest, ties to even. The remainder of y has fewer bits than y, so it is exact. The sums of the
// bits also count the offset's own bits once per term, which are taken off in the end. The limbs
// then make the integers that add_term of exact_bins.hpp makes.
#pragma once

#include <cstdint>

#include "core/pod/exact_bins.hpp"

namespace kvmesh {

inline constexpr int kLimbs = 4;
static_assert(kLimbs * 20 == 2 * kBinBits);
/// As many terms of 2^19 as fit into 31 bits.
inline constexpr std::uint32_t kMostLimbTerms = (1u << 12) - 1;
/// Terms are below it, in units of the top bin.
inline constexpr float kTermLimit = 549755813888.0f;  // 2^39

inline constexpr float kLimbOffset = 12582912.0f;  // 1.5 * 2^23: its neighbours are 1 away
inline constexpr std::uint32_t kLimbOffsetBits = __builtin_bit_cast(std::uint32_t, kLimbOffset);

struct ExactLimbs {
  std::uint32_t limb[kLimbs];
};

/// Sums of `terms` terms that are all 0.
constexpr ExactLimbs zero_limbs(std::uint32_t terms) {
  const std::uint32_t bits = terms * kLimbOffsetBits;
  return {{bits, bits, bits, bits}};
}

/// Adds a term in units of the top bin. REQUIRES: |y| < kTermLimit.
constexpr void add_term(ExactLimbs& sum, float y) {
  constexpr float kUp = 1048576.0f, kDown = 1.0f / kUp;  // 2^20
  float shifted = y * kDown + kLimbOffset;
  sum.limb[0] += __builtin_bit_cast(std::uint32_t, shifted);
  float rest = y - (shifted - kLimbOffset) * kUp;
  shifted = rest + kLimbOffset;
  sum.limb[1] += __builtin_bit_cast(std::uint32_t, shifted);
  rest -= shifted - kLimbOffset;
  shifted = rest * kUp + kLimbOffset;
  sum.limb[2] += __builtin_bit_cast(std::uint32_t, shifted);
  rest = rest * kUp - (shifted - kLimbOffset);
  shifted = rest * kUp + kLimbOffset;
  sum.limb[3] += __builtin_bit_cast(std::uint32_t, shifted);
}

/// The sums without the offsets of their terms: these may be added to others.
constexpr ExactLimbs without_offsets(const ExactLimbs& sum, std::uint32_t terms) {
  const std::uint32_t bits = terms * kLimbOffsetBits;
  return {{sum.limb[0] - bits, sum.limb[1] - bits, sum.limb[2] - bits, sum.limb[3] - bits}};
}

/// REQUIRES: limbs without offsets, of at most kMostLimbTerms terms.
constexpr ExactSum sum_of(const ExactLimbs& limbs) {
  const auto joined = [&](int upper) {
    return static_cast<std::int64_t>(static_cast<std::int32_t>(limbs.limb[upper])) * (1 << 20) +
           static_cast<std::int32_t>(limbs.limb[upper + 1]);
  };
  return {joined(0), joined(2)};
}

/// Brings sums of `terms` terms from bin `from` to the top bin `to`. REQUIRES: from <= to.
constexpr void raise(ExactLimbs& sum, std::int32_t from, std::int32_t to, std::uint32_t terms) {
  if (from == to) return;
  const std::uint32_t zero = terms * kLimbOffsetBits;
  const bool is_next = from == to - 1;
  sum = {{zero, zero, is_next ? sum.limb[0] : zero, is_next ? sum.limb[1] : zero}};
}

/// A power of two in two factors: as one float32 it may overflow.
struct TermScale {
  float first, second;

  /// Returns x * 2^exponent, exact wherever it is not far below the limbs.
  constexpr float operator()(float x) const { return x * first * second; }
};

/// 2^exponent. REQUIRES: -126 <= exponent <= 127.
constexpr float float_power_of_two(std::int32_t exponent) {
  return __builtin_bit_cast(float, (exponent + 127) << 23);
}

/// Scales x * 2^exponent to units of the bin `top`. No float32 but 0 is below 2^-149, and no term
/// above 2^39, so more than 188 places up are those of a sum without a term, or of a 0; and more
/// than 169 down leave nothing.
constexpr TermScale scale_to(std::int32_t top, std::int32_t exponent) {
  constexpr std::int32_t kFar = 1 << 24, kMost = 252;  // kFar: no number's bin
  std::int32_t units = top < -kFar ? -kFar : top > kFar ? kFar : top;
  units = exponent - kBinBits * units;
  units = units < -kMost ? -kMost : units > kMost ? kMost : units;
  const std::int32_t half = units >= 0 ? units / 2 : -(-units / 2);
  return {float_power_of_two(half), float_power_of_two(units - half)};
}

/// The bin of x * 2^exponent. REQUIRES: x is finite, and above 0.
constexpr std::int32_t bin_of_term(float x, std::int32_t exponent) {
  constexpr float kUp = 18446744073709551616.0f;  // 2^64, for subnormal numbers
  auto bits = __builtin_bit_cast(std::uint32_t, x) >> 23;
  if (bits == 0) {
    bits = __builtin_bit_cast(std::uint32_t, x * kUp) >> 23;
    exponent -= 64;
  }
  return bin_of(exponent + static_cast<std::int32_t>(bits) - 126);  // 1.0 is below 2^1
}

}  // namespace kvmesh
