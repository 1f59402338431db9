// Attention in float64, simple enough to be checked by reading.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kvmesh/mods.hpp"

namespace kvmesh::verify {

/// A sequence's keys and values as the cache stores them (after rounding to its dtype):
/// k [length, kv_heads, k_dim], v [length, kv_heads, v_dim].
struct DenseSequence {
  std::int64_t kv_heads = 1, k_dim = 0, v_dim = 0;
  std::vector<float> k, v;
  std::int64_t length() const { return static_cast<std::int64_t>(k.size()) / (kv_heads * k_dim); }
};

struct ReferenceRow {
  std::vector<double> o;
  double lse = -std::numeric_limits<double>::infinity();
};

/// One query row: `q` [k_dim] of global head `head` with `group` query heads per kv head (kv head
/// `head / group` of the sequence), at logical position `position` of batch row `b`. `mask` is a
/// MaskMod or another function of the same numbers.
template <class Mask>
ReferenceRow reference_row(const DenseSequence& sequence, const float* q, double scale,
                           const Mask& mask, const ScoreMod& score, std::int32_t b,
                           std::int32_t head, std::int32_t group, std::int32_t position) {
  const std::int64_t kv_head = head / group;
  std::vector<double> scores;
  double max = -std::numeric_limits<double>::infinity();
  for (std::int64_t kv = 0; kv < sequence.length(); ++kv) {
    const float* k = sequence.k.data() + (kv * sequence.kv_heads + kv_head) * sequence.k_dim;
    double dot = 0;
    for (std::int64_t d = 0; d < sequence.k_dim; ++d) dot += double{q[d]} * double{k[d]};
    double value = scale * dot;
    const auto at = static_cast<std::int32_t>(kv);
    if (!score.is_identity()) value = score(static_cast<float>(value), b, head, position, at);
    if (!mask(b, head, position, at)) value = -std::numeric_limits<double>::infinity();
    scores.push_back(value);
    max = std::max(max, value);
  }
  ReferenceRow row;
  row.o.assign(static_cast<std::size_t>(sequence.v_dim), 0.0);
  if (max == -std::numeric_limits<double>::infinity()) return row;
  double sum = 0;
  for (std::size_t kv = 0; kv < scores.size(); ++kv) {
    const double p = std::exp(scores[kv] - max);
    if (p == 0) continue;
    sum += p;
    const float* v = sequence.v.data() +
                     (static_cast<std::int64_t>(kv) * sequence.kv_heads + kv_head) * sequence.v_dim;
    for (std::size_t d = 0; d < row.o.size(); ++d) row.o[d] += p * double{v[d]};
  }
  for (double& o : row.o) o /= sum;
  row.lse = max + std::log(sum);
  return row;
}

/// Returns the row with a sink: one more key with this score and the value 0.
inline ReferenceRow with_sink(ReferenceRow row, double sink) {
  const double max = std::max(row.lse, sink);
  if (max == -std::numeric_limits<double>::infinity()) return row;
  const double keys = std::exp(row.lse - max), sum = keys + std::exp(sink - max);
  for (double& o : row.o) o *= keys / sum;
  row.lse = max + std::log(sum);
  return row;
}

}  // namespace kvmesh::verify
