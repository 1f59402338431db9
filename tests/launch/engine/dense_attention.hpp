// Attention over all keys of one sequence in plain arrays, as the engine's reference.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "launch/engine/llama.hpp"

namespace kvmesh::engine {

/// Serves one sequence whose tokens come in order, in batches of any size. Arithmetic in double.
class DenseAttention {
 public:
  explicit DenseAttention(const LlamaShape& shape)
      : shape_(shape), keys_(static_cast<std::size_t>(shape.layers)), values_(keys_) {}

  void operator()(const Attention& io) {
    std::vector<float>& keys = keys_[static_cast<std::size_t>(io.layer)];
    std::vector<float>& values = values_[static_cast<std::size_t>(io.layer)];
    const std::size_t before = keys.size() / row_size();
    for (std::int64_t t = 0; t < io.k.size(0); ++t) {
      const float* k = row(io.k, t);
      const float* v = row(io.v, t);
      keys.insert(keys.end(), k, k + row_size());
      values.insert(values.end(), v, v + row_size());
    }
    for (std::int64_t t = 0; t < io.q.size(0); ++t) {
      const std::size_t visible = before + static_cast<std::size_t>(t) + 1;
      for (int head = 0; head < shape_.q_heads; ++head) {
        attend(row(io.q, t) + head * shape_.head_dim, keys, values, head, visible,
               static_cast<float*>(io.o.data) + t * io.o.stride(0) + head * io.o.stride(1));
      }
    }
  }

 private:
  std::size_t row_size() const {
    return static_cast<std::size_t>(shape_.kv_heads * shape_.head_dim);
  }
  static const float* row(const ConstTensorView& view, std::int64_t token) {
    return static_cast<const float*>(view.data) + token * view.stride(0);
  }

  void attend(const float* q, const std::vector<float>& keys, const std::vector<float>& values,
              int head, std::size_t visible, float* out) const {
    const auto dim = static_cast<std::size_t>(shape_.head_dim);
    const auto group = static_cast<std::size_t>(head / (shape_.q_heads / shape_.kv_heads));
    std::vector<double> scores(visible);
    for (std::size_t t = 0; t < visible; ++t) {
      const float* key = keys.data() + t * row_size() + group * dim;
      for (std::size_t d = 0; d < dim; ++d) {
        scores[t] += static_cast<double>(q[d]) * static_cast<double>(key[d]);
      }
      scores[t] /= std::sqrt(static_cast<double>(dim));
    }
    const double max = *std::max_element(scores.begin(), scores.end());
    std::vector<double> sums(dim);
    double total = 0.0;
    for (std::size_t t = 0; t < visible; ++t) {
      const double weight = std::exp(scores[t] - max);
      const float* value = values.data() + t * row_size() + group * dim;
      for (std::size_t d = 0; d < dim; ++d) sums[d] += weight * static_cast<double>(value[d]);
      total += weight;
    }
    for (std::size_t d = 0; d < dim; ++d) out[d] = static_cast<float>(sums[d] / total);
  }

  LlamaShape shape_;
  std::vector<std::vector<float>> keys_;  // [layer][tokens, kv_heads, head_dim]
  std::vector<std::vector<float>> values_;
};

}  // namespace kvmesh::engine
