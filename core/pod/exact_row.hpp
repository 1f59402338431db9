// What a row of exact sums has beside its outputs, for the host, nvcc and NVRTC: it needs <cstdint>
// alone.
#pragma once

#include <cstdint>

#include "core/pod/exact_bins.hpp"
#include "core/pod/row_merge.hpp"

namespace kvmesh {

struct ExactRowHead {
  /// The largest score of a visible key. -inf: there is none. NaN: a score was NaN or +inf.
  float max;
  std::int32_t o_bin;    ///< the top bin of all outputs; kNotFinite: a value was no finite number
  std::int32_t sum_bin;  ///< the top bin of the sum of weights
  std::int32_t unused;
  ExactSum sum;  ///< of exp(score)
};
static_assert(sizeof(ExactRowHead) == 32);

/// The head of a row without a key.
inline constexpr ExactRowHead kNoExactKeys{
    .max = kNoKeys, .o_bin = kNoBin, .sum_bin = kNoBin, .unused = 0, .sum = {}};

/// The keys of a page whose sums are float32: a multiple of these, from the page's begin on.
inline constexpr int kExactChunkKeys = 16;

/// Keys per chunk: the largest power of two that divides both. Chunks begin at multiples of this
/// position, so all page sizes that are multiples of 16 have the same chunks and give the same
/// bits.
constexpr int exact_chunk_keys(int page_size) {
  const int power = page_size & -page_size;
  return power < kExactChunkKeys ? power : kExactChunkKeys;
}

/// The elements of a row's outputs in memory: whole vectors of 16.
constexpr std::int64_t exact_dim(int v_dim) { return (v_dim + 15) / 16 * 16; }
/// Bytes of a row: the head, then high [exact_dim] and low [exact_dim].
constexpr std::int64_t exact_row_bytes(int v_dim) {
  return static_cast<std::int64_t>(sizeof(ExactRowHead)) + 16 * exact_dim(v_dim);
}

/// The scores that the sums take at their word. One beyond counts as the nearest: its neighbours in
/// float32 are half a unit or more away, which is a factor of 1.6 between their weights.
inline constexpr float kLargestScore = 4194304.0f;  // 2^22

/// A chunk's weights are exp(score - exponent * ln 2). ln 2 has two parts, the first with few bits,
/// so that its product with an exponent is exact.
inline constexpr float kExactLog2E = 1.44269504f;
inline constexpr float kExactLn2High = 0.693359375f;
inline constexpr float kExactLn2Low = -2.12194440e-4f;

/// A bound of a float32 by its bits: |x| < 2^bound_of(bits of |x|). REQUIRES: x is finite.
constexpr std::int32_t bound_of(std::int32_t magnitude_bits) {
  return (magnitude_bits >> 23) - 126;  // 1.0 has 127 there, and is below 2^1
}
/// The bits of |x| of an infinity or a NaN are at least these.
inline constexpr std::int32_t kInfinityBits = 0x7F80'0000;

/// Adds a weight, weight * 2^exponent, to the row's sum. REQUIRES: weight > 0, and finite.
constexpr void add_weight(ExactRowHead& head, float weight, std::int32_t exponent) {
  const std::int32_t bin = bin_of(exponent + bound_of(__builtin_bit_cast(std::int32_t, weight)));
  if (bin > head.sum_bin) {
    head.sum = raised(head.sum, head.sum_bin, bin);
    head.sum_bin = bin;
  }
  add_term(head.sum, head.sum_bin, weight, exponent, bin);
}

/// The maximum of a row that has seen a score which is NaN or +inf: one NaN, so that bits are
/// equal.
inline constexpr float kSpoilt = __builtin_bit_cast(float, std::uint32_t{0x7FC0'0000});

/// The larger score; kSpoilt if one is NaN.
constexpr float exact_max(float a, float b) {
  if (a != a || b != b) return kSpoilt;
  return a < b ? b : a;
}

/// Adds the keys of `from` to `head`, whose outputs are merged by the caller. Associative and
/// commutative to the last bit.
constexpr void merge_sums(ExactRowHead& head, const ExactRowHead& from) {
  head.max = exact_max(head.max, from.max);
  const std::int32_t bin = head.sum_bin < from.sum_bin ? from.sum_bin : head.sum_bin;
  const ExactSum mine = raised(head.sum, head.sum_bin, bin);
  const ExactSum other = raised(from.sum, from.sum_bin, bin);
  head.sum = {mine.high + other.high, mine.low + other.low};
  head.sum_bin = bin;
}

}  // namespace kvmesh
