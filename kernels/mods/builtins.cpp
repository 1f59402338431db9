#include <cmath>

#include "core/check.hpp"
#include "kvmesh/mods.hpp"

namespace kvmesh::mods {

MaskMod no_mask() { return {}; }

MaskMod causal() {
  return [](auto, auto, auto q, auto kv) { return q >= kv; };
}

MaskMod causal_upper_left() { return causal(); }

MaskMod causal_upper_left(const Buffer<std::int32_t>& first_query) {
  return [&](auto b, auto, auto q, auto kv) { return q - first_query[b] >= kv; };
}

MaskMod sliding_window(std::int32_t n) {
  require(n >= 1, "a sliding window of {} keys: it needs at least 1", n);
  return [n](auto, auto, auto q, auto kv) { return q >= kv && q - kv < n; };
}

MaskMod prefix_lm(std::int32_t prefix_len) {
  require(prefix_len >= 0, "a prefix of {} positions: it cannot be negative", prefix_len);
  return [prefix_len](auto, auto, auto q, auto kv) { return kv < prefix_len || q >= kv; };
}

MaskMod prefix_lm(const Buffer<std::int32_t>& prefix_len) {
  return [&](auto b, auto, auto q, auto kv) { return kv < prefix_len[b] || q >= kv; };
}

MaskMod documents(const Buffer<std::int32_t>& doc_id) {
  return [&](auto, auto, auto q, auto kv) { return doc_id[q] == doc_id[kv]; };
}

/// With n a power of two, head i has slope 2^(-8 (i + 1) / n). For other counts the paper takes the
/// slopes of the power of two below, then every second one of the power above.
Buffer<float> alibi_slopes(int n_heads) {
  require(n_heads >= 1, "ALiBi slopes for {} heads: it needs at least 1", n_heads);
  int power = 1;
  while (power * 2 <= n_heads) power *= 2;
  std::vector<float> slopes;
  for (int i = 0; i < power; ++i) slopes.push_back(std::exp2(-8.0f * float(i + 1) / float(power)));
  for (int i = 0; i < n_heads - power; ++i) {
    slopes.push_back(std::exp2(-8.0f * float(2 * i + 1) / float(2 * power)));
  }
  return Buffer<float>(slopes);
}

ScoreMod alibi(const Buffer<float>& slopes) {
  return [&](auto score, auto, auto h, auto q, auto kv) {
    return score + slopes[h] * to_float(kv - q);
  };
}

ScoreMod alibi(int n_heads) { return alibi(alibi_slopes(n_heads)); }

ScoreMod soft_cap(float cap) {
  require(cap > 0.0f && std::isfinite(cap), "a soft cap of {}: it must be positive and finite",
          cap);
  return [cap](auto score, auto, auto, auto, auto) { return cap * tanh(score / cap); };
}

ScoreMod relative_bias(const Buffer<float>& table, std::int32_t max_distance) {
  require(max_distance >= 0, "a relative bias up to distance {}: it cannot be negative",
          max_distance);
  const std::int64_t row = 2 * std::int64_t{max_distance} + 1;
  require(table.size() % row == 0,
          "a relative bias up to distance {} takes rows of {} entries: the table has {}",
          max_distance, row, table.size());
  return [&](auto score, auto, auto h, auto q, auto kv) {
    const auto column = max(-max_distance, min(q - kv, max_distance)) + max_distance;
    return score + (table.size() == row ? table[column] : table[h * row + column]);
  };
}

ScoreMod compose(const ScoreMod& first, const ScoreMod& second) {
  return [&](auto score, auto b, auto h, auto q, auto kv) {
    return second(first(score, b, h, q, kv), b, h, q, kv);
  };
}

}  // namespace kvmesh::mods
