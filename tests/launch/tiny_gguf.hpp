// Writes GGUF files for tests: any keys and tensors, or a whole miniature llama model.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "launch/engine/gguf/weight_type.hpp"

namespace kvmesh::test {

/// Collects keys and tensors; bytes() is the file.
class GgufWriter {
 public:
  void text(std::string_view key, std::string_view value);
  void integer(std::string_view key, std::uint32_t value);
  void real(std::string_view key, float value);
  void flag(std::string_view key, bool value);
  void texts(std::string_view key, std::span<const std::string> values);
  void integers(std::string_view key, std::span<const std::int32_t> values);
  /// `shape[0]` is the contiguous dimension. `bytes` may have any size: a wrong one makes a bad
  /// file.
  void tensor(std::string_view name, engine::WeightType type, std::vector<std::uint64_t> shape,
              std::string_view bytes);

  std::string bytes() const;

 private:
  void key(std::string_view name, std::uint32_t type);

  std::string keys_;
  std::string tensors_;
  std::string data_;
  std::uint64_t key_count_ = 0;
  std::uint64_t tensor_count_ = 0;
};

/// `values` in blocks of `type` (F32, F16, Q4_0, Q4_1 or Q8_0), rounded to nearest.
std::string encode_weights(engine::WeightType type, std::span<const float> values);

/// The vocabulary of the tiny model: control tokens <|endoftext|>, <|im_start|>, <|im_end|>, then
/// one token per byte, then a few merges of English.
struct TinyVocabulary {
  std::vector<std::string> tokens;
  std::vector<std::int32_t> types;
  std::vector<std::string> merges;
};
TinyVocabulary tiny_vocabulary();
/// Writes the vocabulary, and the other data of a tokenizer, into `file`.
void add_tokenizer(GgufWriter& file, const TinyVocabulary& vocabulary);

struct TinyModelOptions {
  std::uint32_t layers = 2;
  std::uint32_t q_heads = 4;
  std::uint32_t kv_heads = 2;
  std::uint32_t head_dim = 16;
  std::uint32_t feed_forward = 96;
  std::uint32_t context_tokens = 256;
  bool tied = true;  ///< No output matrix of its own.
  engine::WeightType matrices = engine::WeightType::kQ4_1;
  std::uint64_t seed = 1;
  bool heads_per_layer = false;                ///< Their number is given for each layer.
  std::function<void(GgufWriter&)> with = {};  ///< Adds what else the file shall hold.
};
/// The bytes of a random llama model, embedding = q_heads * head_dim.
std::string tiny_model(const TinyModelOptions& options = {});

/// A file in the temporary directory with `bytes`, removed with this object.
class TemporaryFile {
 public:
  explicit TemporaryFile(std::string_view bytes);
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  std::string path() const { return path_.string(); }
  void rewrite(std::string_view bytes) const;

 private:
  std::filesystem::path path_;
};

}  // namespace kvmesh::test
