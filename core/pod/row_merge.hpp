// The arithmetic of merging partials, for the host, nvcc and NVRTC: it needs <cstdint> alone.
//
// With LSE_i the log-sum-exp of subset i and O_i its normalised output, the union has
//   LSE = log sum_i exp(LSE_i),   O = sum_i exp(LSE_i - LSE) * O_i.
// A shift is taken out of the LSEs first, so nothing overflows:
//   LSE = shift + log sum_i exp(LSE_i - shift),   shift = merge_shift(max_i LSE_i).
// Without a visible key the sum is 0 and LSE = 0 + log 0 = -inf. The maximum may skip a NaN,
// the sum does not: a NaN is not an empty subset. Source: Dao et al., FlashAttention, 2022,
// section 3.1.
#pragma once

#include <cstdint>

namespace kvmesh {

/// The score of no key, and the log-sum-exp of an empty subset: -inf.
inline constexpr float kNoKeys = __builtin_bit_cast(float, std::uint32_t{0xFF80'0000});

/// The shift for subsets whose largest LSE is `largest`. Not -inf: -inf - -inf is NaN.
constexpr float merge_shift(float largest) { return largest == kNoKeys ? 0.0f : largest; }

/// The weight of a subset in a union whose LSE is `merged`; `exp` is the caller's exponential.
/// An empty subset has the weight 0 and an O that may be anything: skip it, as 0 * NaN is NaN.
template <class Exp>
constexpr float merge_weight(float lse, float merged, const Exp& exp) {
  return lse == kNoKeys ? 0.0f : exp(lse - merged);
}

/// The LSE of a row with a sink: a term of the softmax's denominator that has no value. Exactly one
/// of the merged partials counts it. `lse` is without it; -inf is no sink. `exp` and `log` are the
/// caller's. Source: Xiao et al., Efficient streaming language models with attention sinks, 2023.
template <class Exp, class Log>
constexpr float lse_with_sink(float lse, float sink, const Exp& exp, const Log& log) {
  const float shift = merge_shift(lse < sink ? sink : lse);
  return shift + log(exp(lse - shift) + exp(sink - shift));
}

}  // namespace kvmesh
