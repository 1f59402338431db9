#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>

#include "launch/engine/llama.hpp"
#include "launch/engine/llama_support.hpp"

namespace kvmesh::engine {
namespace {

[[noreturn]] void fail(const GgufFile& file, std::string_view what) {
  throw ModelError(fmt::format("{}: {}", file.path(), what));
}

/// A count: positive, and small enough that products of two never overflow.
std::int64_t count(const GgufFile& file, std::string_view key, std::int64_t value) {
  if (value < 1 || value > std::numeric_limits<std::int32_t>::max()) {
    fail(file, fmt::format("damaged: {} is {}; download it again", key, value));
  }
  return value;
}

/// Returns the number of `key`; nothing if it is missing. If a file has it per layer, all must be
/// the same.
std::optional<std::int64_t> number(const GgufFile& file, std::string_view key) {
  const auto entry = file.metadata().find(key);
  if (entry == file.metadata().end()) return std::nullopt;
  const auto* list = std::get_if<std::vector<std::int64_t>>(&entry->second);
  if (list == nullptr) return file.get<std::int64_t>(key);
  if (list->empty()) fail(file, fmt::format("damaged: {} is an empty list", key));
  if (std::ranges::adjacent_find(*list, std::ranges::not_equal_to{}) != list->end()) {
    fail(file, fmt::format("{} differs from layer to layer, which is not supported; use another "
                           "model",
                           key));
  }
  return list->front();
}

std::int64_t count_or(const GgufFile& file, std::string_view key, std::int64_t otherwise) {
  return count(file, key, number(file, key).value_or(otherwise));
}

std::int64_t count(const GgufFile& file, std::string_view key) {
  const std::optional<std::int64_t> value = number(file, key);
  return count(file, key,
               value ? *value : file.get<std::int64_t>(key));  // which says it is missing
}

double positive(const GgufFile& file, std::string_view key, double value) {
  if (!(value > 0.0 && value <= std::numeric_limits<float>::max())) {
    fail(file, fmt::format("damaged: {} is {}; download it again", key, value));
  }
  return value;
}

void check_heads(const GgufFile& file, const LlamaShape& shape) {
  if (shape.q_heads % shape.kv_heads != 0) {
    fail(file, fmt::format("damaged: {} query heads cannot share {} key heads; download it again",
                           shape.q_heads, shape.kv_heads));
  }
  if (shape.rope_dims % 2 != 0 || shape.rope_dims > shape.head_dim) {
    fail(file, fmt::format("damaged: {} rotary dimensions in heads of {}; download it again",
                           shape.rope_dims, shape.head_dim));
  }
  const std::int64_t rows = file.tensor("blk.0.attn_q.weight").shape[1];
  if (std::int64_t{shape.q_heads} * shape.head_dim != rows) {
    fail(file, fmt::format("damaged: {} query heads of {}, but {} rows in blk.0.attn_q.weight; "
                           "download it again",
                           shape.q_heads, shape.head_dim, rows));
  }
}

}  // namespace

LlamaShape llama_shape(const GgufFile& file) {
  check_architecture(file);
  LlamaShape shape;
  shape.layers = static_cast<int>(count(file, "llama.block_count"));
  shape.embedding = count(file, "llama.embedding_length");
  shape.feed_forward = count(file, "llama.feed_forward_length");
  shape.context_tokens = count(file, "llama.context_length");
  shape.q_heads = static_cast<int>(count(file, "llama.attention.head_count"));
  shape.kv_heads = static_cast<int>(count_or(file, "llama.attention.head_count_kv", shape.q_heads));
  shape.head_dim =
      static_cast<int>(count_or(file, "llama.attention.key_length",
                                count(file, "llama.embedding_length / llama.attention.head_count",
                                      shape.embedding / shape.q_heads)));
  if (count_or(file, "llama.attention.value_length", shape.head_dim) != shape.head_dim) {
    fail(file, "keys and values of different lengths are not supported; use another model");
  }
  shape.rope_dims = count_or(file, "llama.rope.dimension_count", shape.head_dim);
  if (const auto* base = file.find<double>("llama.rope.freq_base")) {
    shape.rope_base = positive(file, "llama.rope.freq_base", *base);
  }
  const auto* key = "llama.attention.layer_norm_rms_epsilon";
  shape.norm_epsilon = static_cast<float>(positive(file, key, file.get<double>(key)));
  shape.vocabulary =
      count(file, "the height of token_embd.weight", file.tensor("token_embd.weight").shape[1]);
  check_heads(file, shape);
  check_keys(file);
  return shape;
}

}  // namespace kvmesh::engine
