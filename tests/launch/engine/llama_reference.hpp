// The llama forward in float64, one sequence from position 0, written to be checked by eye.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "launch/engine/llama.hpp"

namespace kvmesh::engine {

class LlamaReference {
 public:
  explicit LlamaReference(const GgufFile& file) : file_(file), shape_(llama_shape(file)) {}

  /// The logits of the last of `tokens`.
  std::vector<double> logits(const std::vector<Token>& tokens) {
    const std::vector<double> embeddings = weights("token_embd");
    const auto width = static_cast<std::size_t>(shape_.embedding);
    Rows x;
    for (Token token : tokens) {
      const auto from = embeddings.begin() + token * shape_.embedding;
      x.emplace_back(from, from + shape_.embedding);
    }
    for (int i = 0; i < shape_.layers; ++i) layer(x, "blk." + std::to_string(i) + ".");
    const std::string output = file_.has_tensor("output.weight") ? "output" : "token_embd";
    return times(output, norm("output_norm", x).back(), width);
  }

 private:
  using Row = std::vector<double>;
  using Rows = std::vector<Row>;

  Row weights(const std::string& name) const {
    const GgufTensor& tensor = file_.tensor(name + ".weight");
    std::vector<float> values(static_cast<std::size_t>(tensor.shape[0] * tensor.shape[1]));
    dequantize(tensor.type, file_.data(tensor).data(), values);
    return Row(values.begin(), values.end());
  }

  Row times(const std::string& name, const Row& x, std::size_t cols) const {
    const Row w = weights(name);
    Row y(w.size() / cols);
    for (std::size_t r = 0; r < y.size(); ++r) {
      for (std::size_t c = 0; c < cols; ++c) y[r] += w[r * cols + c] * x[c];
    }
    return y;
  }

  Rows times(const std::string& name, const Rows& x) const {
    Rows y;
    for (const Row& row : x) y.push_back(times(name, row, row.size()));
    return y;
  }

  Rows norm(const std::string& name, const Rows& x) const {
    const Row w = weights(name);
    Rows y = x;
    for (Row& row : y) {
      double squares = 0.0;
      for (double value : row) squares += value * value;
      const double scale =
          1.0 / std::sqrt(squares / static_cast<double>(row.size()) + double{shape_.norm_epsilon});
      for (std::size_t i = 0; i < row.size(); ++i) row[i] *= scale * w[i];
    }
    return y;
  }

  void rotate(Rows& x) const {
    const auto dim = static_cast<std::size_t>(shape_.head_dim);
    for (std::size_t t = 0; t < x.size(); ++t) {
      for (std::size_t i = 0; i < x[t].size(); i += 2) {
        const double exponent = -static_cast<double>(i % dim) / static_cast<double>(dim);
        const double angle = static_cast<double>(t) * std::pow(shape_.rope_base, exponent);
        const double a = x[t][i];
        const double b = x[t][i + 1];
        x[t][i] = a * std::cos(angle) - b * std::sin(angle);
        x[t][i + 1] = a * std::sin(angle) + b * std::cos(angle);
      }
    }
  }

  void layer(Rows& x, const std::string& name) const {
    const Rows normed = norm(name + "attn_norm", x);
    Rows q = times(name + "attn_q", normed);
    Rows k = times(name + "attn_k", normed);
    rotate(q);
    rotate(k);
    add(x, times(name + "attn_output", attend(q, k, times(name + "attn_v", normed))));
    const Rows hidden = norm(name + "ffn_norm", x);
    Rows gate = times(name + "ffn_gate", hidden);
    const Rows up = times(name + "ffn_up", hidden);
    for (std::size_t t = 0; t < gate.size(); ++t) {
      for (std::size_t i = 0; i < gate[t].size(); ++i) {
        gate[t][i] = gate[t][i] / (1.0 + std::exp(-gate[t][i])) * up[t][i];
      }
    }
    add(x, times(name + "ffn_down", gate));
  }

  static void add(Rows& x, const Rows& values) {
    for (std::size_t t = 0; t < x.size(); ++t) {
      for (std::size_t i = 0; i < x[t].size(); ++i) x[t][i] += values[t][i];
    }
  }

  Rows attend(const Rows& q, const Rows& k, const Rows& v) const {
    const auto dim = static_cast<std::size_t>(shape_.head_dim);
    const auto group = static_cast<std::size_t>(shape_.q_heads / shape_.kv_heads);
    Rows out;
    for (std::size_t t = 0; t < q.size(); ++t) {
      Row& row = out.emplace_back(q[t].size());
      for (std::size_t h = 0; h < q[t].size() / dim; ++h) {
        double sum = 0.0;
        for (std::size_t s = 0; s <= t; ++s) {
          double score = 0.0;
          for (std::size_t d = 0; d < dim; ++d)
            score += q[t][h * dim + d] * k[s][h / group * dim + d];
          // Scores of the tiny model are small: exp needs no maximum subtracted.
          const double weight = std::exp(score / std::sqrt(static_cast<double>(dim)));
          sum += weight;
          for (std::size_t d = 0; d < dim; ++d)
            row[h * dim + d] += weight * v[s][h / group * dim + d];
        }
        for (std::size_t d = 0; d < dim; ++d) row[h * dim + d] /= sum;
      }
    }
    return out;
  }

  const GgufFile& file_;
  LlamaShape shape_;
};

}  // namespace kvmesh::engine
