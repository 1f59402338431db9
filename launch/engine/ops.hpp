// The element-wise operations of a llama block: norm, residual, rotary embedding.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kvmesh::engine {

/// out[i] = x[i] / sqrt(mean(x^2) + epsilon) * weight[i]. `out` may be `x`.
void rms_norm(std::span<const float> x, std::span<const float> weight, float epsilon,
              std::span<float> out);

/// target[i] += values[i].
void add_to(std::span<float> target, std::span<const float> values);

/// Rotary embedding: the pair (2i, 2i + 1) of a head is turned by position * base^(-2i / dims) for
/// 2i < dims; the head's other elements stay. GGUF files of llama models hold query and key rows
/// permuted for these pairs. Source: Su et al., RoFormer, 2021.
class Rope {
 public:
  /// `factors` divide the frequencies, one per pair; empty: none.
  Rope(std::int64_t dims, double base, std::span<const float> factors = {});

  /// Makes the angles' cosines and sines for a batch; turn() uses them for every layer.
  void set_positions(std::span<const std::int64_t> positions);

  /// Turns all `heads` heads of `head_dim` of the batch's token `token` (an index into the batch).
  void turn(float* heads_of_token, std::int64_t heads, std::int64_t head_dim,
            std::size_t token) const;

 private:
  std::vector<double> frequencies_;
  std::vector<float> cosines_;  // [tokens, dims / 2]
  std::vector<float> sines_;
};

}  // namespace kvmesh::engine
