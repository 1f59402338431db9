#include "launch/engine/llama.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>

#include "kvmesh/error.hpp"
#include "launch/engine/linear.hpp"
#include "launch/engine/linear_kernels.hpp"
#include "launch/engine/llama_support.hpp"
#include "launch/engine/sampling.hpp"

namespace kvmesh::engine {
namespace {

std::vector<float> read_vector(const GgufFile& file, std::string_view name, std::int64_t size) {
  const Matrix row = matrix(file, name, 1, size);
  std::vector<float> values(static_cast<std::size_t>(size));
  dequantize(row.type, row.data, values);
  return values;
}

std::vector<float> rope_factors(const GgufFile& file, const LlamaShape& shape) {
  if (!file.has_tensor("rope_freqs.weight")) return {};
  return read_vector(file, "rope_freqs.weight", shape.rope_dims / 2);
}

/// Returns a buffer for `count` floats: the front of `buffer`, which grows and never shrinks.
std::span<float> take(std::vector<float>& buffer, std::int64_t count) {
  const auto size = static_cast<std::size_t>(count);
  if (buffer.size() < size) buffer.resize(size);
  return std::span(buffer).first(size);
}

}  // namespace

Llama::Llama(const GgufFile& file, Communicator& comm, ThreadPool& threads)
    : shape_(llama_shape(file)),
      gather_(comm),
      threads_(threads),
      rope_(shape_.rope_dims, shape_.rope_base, rope_factors(file, shape_)),
      embeddings_(matrix(file, "token_embd.weight", shape_.vocabulary, shape_.embedding)),
      // Without an output matrix the embeddings are used as one ("tied").
      output_(file.has_tensor("output.weight")
                  ? matrix(file, "output.weight", shape_.vocabulary, shape_.embedding)
                  : embeddings_),
      output_norm_(read_vector(file, "output_norm.weight", shape_.embedding)) {
  for (int i = 0; i < shape_.layers; ++i) layers_.push_back(read_layer(file, i));
  check_tensors(file, shape_.layers);
}

Llama::Layer Llama::read_layer(const GgufFile& file, int index) const {
  const auto name = [&](std::string_view part) {
    return fmt::format("blk.{}.{}.weight", index, part);
  };
  const auto read = [&](std::string_view part, std::int64_t rows, std::int64_t cols) {
    return matrix(file, name(part), rows, cols);
  };
  const std::int64_t width = shape_.embedding;
  const std::int64_t q_rows = std::int64_t{shape_.q_heads} * shape_.head_dim;
  const std::int64_t kv_rows = std::int64_t{shape_.kv_heads} * shape_.head_dim;
  return {.attention_norm = read_vector(file, name("attn_norm"), width),
          .q = read("attn_q", q_rows, width),
          .k = read("attn_k", kv_rows, width),
          .v = read("attn_v", kv_rows, width),
          .o = read("attn_output", width, q_rows),
          .feed_forward_norm = read_vector(file, name("ffn_norm"), width),
          .gate = read("ffn_gate", shape_.feed_forward, width),
          .up = read("ffn_up", shape_.feed_forward, width),
          .down = read("ffn_down", width, shape_.feed_forward)};
}

void Llama::forward(std::span<const Token> tokens, std::span<const std::int64_t> positions,
                    const Attend& attend) {
  if (tokens.empty() || tokens.size() != positions.size()) {
    throw InvalidArgument(
        fmt::format("a forward of {} tokens at {} positions: both must be the "
                    "same and at least 1",
                    tokens.size(), positions.size()));
  }
  for (Token token : tokens) {
    if (token < 0 || token >= shape_.vocabulary) {
      throw InvalidArgument(fmt::format("token {} is not in the model's vocabulary, which has {}",
                                        token, shape_.vocabulary));
    }
  }
  tokens_ = static_cast<std::int64_t>(tokens.size());
  rope_.set_positions(positions);
  embed(tokens);
  for (int i = 0; i < shape_.layers; ++i) {
    attention_block(i, attend);
    feed_forward_block(layers_[static_cast<std::size_t>(i)]);
  }
}

void Llama::embed(std::span<const Token> tokens) {
  std::span<float> residual = take(residual_, tokens_ * shape_.embedding);
  const auto width = static_cast<std::size_t>(shape_.embedding);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    dequantize(embeddings_.type, embeddings_.row(tokens[i]), residual.subspan(i * width, width));
  }
}

void Llama::attention_block(int index, const Attend& attend) {
  const Layer& layer = layers_[static_cast<std::size_t>(index)];
  normalise(layer.attention_norm);
  const std::array rows{layer.q.rows, layer.k.rows, layer.v.rows};
  const std::int64_t width = rows[0] + rows[1] + rows[2];
  const std::array shares{gather_.mine(rows[0]), gather_.mine(rows[1]), gather_.mine(rows[2])};
  const std::int64_t stride = shares[0].size() + shares[1].size() + shares[2].size();
  std::span<float> mine = take(mine_, tokens_ * stride);
  float* const k_part = mine.data() + shares[0].size();
  const std::array<Product, 3> products{{{&layer.q, shares[0], mine.data(), stride},
                                         {&layer.k, shares[1], k_part, stride},
                                         {&layer.v, shares[2], k_part + shares[1].size(), stride}}};
  multiply(products, take(normed_, tokens_ * shape_.embedding), tokens_, threads_);
  std::span<float> qkv = take(qkv_, tokens_ * width);
  gather_(rows, tokens_, mine, qkv, "gather q, k, v");

  for (std::int64_t t = 0; t < tokens_; ++t) {
    // Query heads and key heads lie side by side: one pass turns both.
    rope_.turn(qkv.data() + t * width, shape_.q_heads + shape_.kv_heads, shape_.head_dim,
               static_cast<std::size_t>(t));
  }
  const std::int64_t dim = shape_.head_dim;
  const auto view = [&](std::int64_t offset, int heads) {
    return ConstTensorView(qkv.data() + offset, Dtype::kFloat32, {tokens_, heads, dim},
                           {width, dim, 1});
  };
  std::span<float> attended = take(attended_, tokens_ * rows[0]);
  attend({.layer = index,
          .q = view(0, shape_.q_heads),
          .k = view(rows[0], shape_.kv_heads),
          .v = view(rows[0] + rows[1], shape_.kv_heads),
          .o = tensor(attended.data(), {tokens_, shape_.q_heads, dim})});
  project_to_residual(layer.o, attended);
}

void Llama::feed_forward_block(const Layer& layer) {
  normalise(layer.feed_forward_norm);
  const IndexRange share = gather_.mine(shape_.feed_forward);
  // Per token: this rank's gates, then its ups.
  std::span<float> mine = take(projected_, tokens_ * 2 * share.size());
  const std::array<Product, 2> products{
      {{&layer.gate, share, mine.data(), 2 * share.size()},
       {&layer.up, share, mine.data() + share.size(), 2 * share.size()}}};
  multiply(products, take(normed_, tokens_ * shape_.embedding), tokens_, threads_);
  std::span<float> product = take(mine_, tokens_ * share.size());
  threads_.for_each(tokens_, [&](std::int64_t t, int) {
    const float* gate = mine.data() + t * 2 * share.size();
    silu_times(gate, gate + share.size(), product.data() + t * share.size(), share.size());
  });
  std::span<float> hidden = take(hidden_, tokens_ * shape_.feed_forward);
  gather_(std::array{shape_.feed_forward}, tokens_, product, hidden, "gather feed-forward");
  project_to_residual(layer.down, hidden);
}

void Llama::normalise(std::span<const float> weight) {
  std::span<float> normed = take(normed_, tokens_ * shape_.embedding);
  const auto width = static_cast<std::size_t>(shape_.embedding);
  for (std::size_t at = 0; at < normed.size(); at += width) {
    rms_norm(std::span(residual_).subspan(at, width), weight, shape_.norm_epsilon,
             normed.subspan(at, width));
  }
}

void Llama::project_to_residual(const Matrix& weights, std::span<const float> x) {
  const IndexRange share = gather_.mine(weights.rows);
  std::span<float> mine = take(mine_, tokens_ * share.size());
  const Product product{&weights, share, mine.data(), share.size()};
  multiply({&product, 1}, x, tokens_, threads_);
  std::span<float> all = take(projected_, tokens_ * weights.rows);
  gather_(std::array{weights.rows}, tokens_, mine, all, "gather projection");
  add_to(take(residual_, tokens_ * weights.rows), all);
}

std::span<const float> Llama::my_logits(std::int64_t token) {
  if (token < 0 || token >= tokens_) {
    throw InvalidArgument(
        fmt::format("logits of token {} of a batch of {}: there is no such token", token, tokens_));
  }
  const auto width = static_cast<std::size_t>(shape_.embedding);
  std::span<float> normed = take(normed_, shape_.embedding);
  rms_norm(std::span(residual_).subspan(static_cast<std::size_t>(token) * width, width),
           output_norm_, shape_.norm_epsilon, normed);
  const IndexRange share = gather_.mine(shape_.vocabulary);
  std::span<float> mine = take(mine_, share.size());
  const Product product{&output_, share, mine.data(), share.size()};
  multiply({&product, 1}, normed, 1, threads_);
  return mine;
}

std::span<const float> Llama::logits(std::int64_t token) {
  const std::span<const float> mine = my_logits(token);
  std::span<float> all = take(logits_, shape_.vocabulary);
  gather_(std::array{shape_.vocabulary}, 1, mine, all, "gather logits");
  return all;
}

Token Llama::greedy(std::int64_t token) {
  struct Candidate {
    float logit;
    Token token;
  };
  const std::span<const float> mine = my_logits(token);
  const Token first = static_cast<Token>(gather_.mine(shape_.vocabulary).begin);
  Candidate best{-std::numeric_limits<float>::infinity(), first};
  if (!mine.empty()) {
    const Token local = argmax(mine);
    best = {mine[static_cast<std::size_t>(local)], first + local};
  }
  std::vector<Candidate> all = all_gather_value(gather_.comm(), best, "gather best tokens");
  // In rank order, so of equal logits the first has the lowest token.
  for (const Candidate& candidate : all) {
    if (candidate.logit > all[0].logit) all[0] = candidate;
  }
  return all[0].token;
}

}  // namespace kvmesh::engine
