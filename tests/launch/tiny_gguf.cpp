#include "tests/launch/tiny_gguf.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <fstream>
#include <stdexcept>

#include "core/numbers/half.hpp"
#include "launch/engine/text/unicode.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

using engine::WeightType;

constexpr std::size_t kAlignment = 32;

template <class Number>
void put(std::string& out, Number value) {
  char raw[sizeof value];
  std::memcpy(raw, &value, sizeof value);
  out.append(raw, sizeof value);
}

void put_text(std::string& out, std::string_view text) {
  put<std::uint64_t>(out, text.size());
  out += text;
}

void pad(std::string& out) { out.resize((out.size() + kAlignment - 1) / kAlignment * kAlignment); }

/// d | m | nibbles, or d | nibbles around -8 if `symmetric`.
void put_q4(std::string& out, std::span<const float> block, bool symmetric) {
  const auto [low, high] = std::ranges::minmax(block);
  const float reach = std::max(std::abs(low), std::abs(high));
  const float scale = std::max(symmetric ? reach / 7.0f : (high - low) / 15.0f, 1e-6f);
  const float zero = symmetric ? -8.0f * scale : low;
  put(out, float_to_float16(scale));
  if (!symmetric) put(out, float_to_float16(low));
  const auto nibble = [&](std::size_t i) {
    return static_cast<int>(std::clamp(std::round((block[i] - zero) / scale), 0.0f, 15.0f));
  };
  for (std::size_t i = 0; i < 16; ++i) {
    put(out, static_cast<std::uint8_t>(nibble(i) | nibble(i + 16) << 4));
  }
}

void put_q8(std::string& out, std::span<const float> block) {
  float reach = 1e-6f;
  for (float value : block) reach = std::max(reach, std::abs(value));
  put(out, float_to_float16(reach / 127.0f));
  for (float value : block) put(out, static_cast<std::int8_t>(std::round(value / reach * 127.0f)));
}

}  // namespace

void GgufWriter::key(std::string_view name, std::uint32_t type) {
  ++key_count_;
  put_text(keys_, name);
  put(keys_, type);
}

void GgufWriter::text(std::string_view name, std::string_view value) {
  key(name, 8);
  put_text(keys_, value);
}

void GgufWriter::integer(std::string_view name, std::uint32_t value) {
  key(name, 4);
  put(keys_, value);
}

void GgufWriter::real(std::string_view name, float value) {
  key(name, 6);
  put(keys_, value);
}

void GgufWriter::flag(std::string_view name, bool value) {
  key(name, 7);
  put<std::uint8_t>(keys_, value ? 1 : 0);
}

void GgufWriter::texts(std::string_view name, std::span<const std::string> values) {
  key(name, 9);
  put<std::uint32_t>(keys_, 8);
  put<std::uint64_t>(keys_, values.size());
  for (const std::string& value : values) put_text(keys_, value);
}

void GgufWriter::integers(std::string_view name, std::span<const std::int32_t> values) {
  key(name, 9);
  put<std::uint32_t>(keys_, 5);
  put<std::uint64_t>(keys_, values.size());
  for (std::int32_t value : values) put(keys_, value);
}

void GgufWriter::tensor(std::string_view name, WeightType type, std::vector<std::uint64_t> shape,
                        std::string_view bytes) {
  ++tensor_count_;
  put_text(tensors_, name);
  put(tensors_, static_cast<std::uint32_t>(shape.size()));
  for (std::uint64_t extent : shape) put(tensors_, extent);
  put(tensors_, static_cast<std::uint32_t>(type));
  put<std::uint64_t>(tensors_, data_.size());
  data_ += bytes;
  pad(data_);
}

std::string GgufWriter::bytes() const {
  std::string out = "GGUF";
  put<std::uint32_t>(out, 3);
  put(out, tensor_count_);
  put(out, key_count_);
  out += keys_ + tensors_;
  pad(out);
  return out + data_;
}

std::string encode_weights(WeightType type, std::span<const float> values) {
  std::string out;
  if (type == WeightType::kF32 || type == WeightType::kF16) {
    for (float value : values) {
      type == WeightType::kF32 ? put(out, value) : put(out, float_to_float16(value));
    }
    return out;
  }
  for (std::size_t i = 0; i + 32 <= values.size(); i += 32) {
    const auto block = values.subspan(i, 32);
    type == WeightType::kQ8_0 ? put_q8(out, block) : put_q4(out, block, type == WeightType::kQ4_0);
  }
  return out;
}

TinyVocabulary tiny_vocabulary() {
  TinyVocabulary vocabulary;
  vocabulary.tokens = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  vocabulary.types = {3, 3, 3};
  std::uint32_t next = 256;
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    const bool visible = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
    engine::append_utf8(vocabulary.tokens.emplace_back(), visible ? byte : next++);
  }
  vocabulary.merges = {"h e", "l l", "he ll", "hell o", "Ġ t", "Ġt he", "i n", "in g", "Ã ©"};
  for (const std::string& merge : vocabulary.merges) {
    const std::size_t space = merge.find(' ');
    vocabulary.tokens.push_back(merge.substr(0, space) + merge.substr(space + 1));
  }
  vocabulary.types.resize(vocabulary.tokens.size(), 1);
  return vocabulary;
}

void add_tokenizer(GgufWriter& file, const TinyVocabulary& vocabulary) {
  file.text("tokenizer.ggml.model", "gpt2");
  file.text("tokenizer.ggml.pre", "smollm");
  file.texts("tokenizer.ggml.tokens", vocabulary.tokens);
  file.integers("tokenizer.ggml.token_type", vocabulary.types);
  file.texts("tokenizer.ggml.merges", vocabulary.merges);
  file.integer("tokenizer.ggml.bos_token_id", 1);
  file.integer("tokenizer.ggml.eos_token_id", 2);
  file.flag("tokenizer.ggml.add_bos_token", false);
  file.text("tokenizer.chat_template",
            "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
            "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}");
}

std::string tiny_model(const TinyModelOptions& options) {
  GgufWriter file;
  const TinyVocabulary vocabulary = tiny_vocabulary();
  const std::uint32_t embedding = options.q_heads * options.head_dim;
  file.text("general.architecture", "llama");
  file.text("general.name", "tiny");
  file.integer("llama.block_count", options.layers);
  file.integer("llama.context_length", options.context_tokens);
  file.integer("llama.embedding_length", embedding);
  file.integer("llama.feed_forward_length", options.feed_forward);
  const auto heads = [&](std::string_view name, std::uint32_t count) {
    if (!options.heads_per_layer) return file.integer(name, count);
    file.integers(name,
                  std::vector<std::int32_t>(options.layers, static_cast<std::int32_t>(count)));
  };
  heads("llama.attention.head_count", options.q_heads);
  heads("llama.attention.head_count_kv", options.kv_heads);
  file.integer("llama.rope.dimension_count", options.head_dim);
  file.real("llama.rope.freq_base", 10000.0f);
  file.real("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  add_tokenizer(file, vocabulary);

  Random random(options.seed);
  const auto norm = [&](const std::string& name) {
    std::vector<float> weights = random.reals(embedding, 0.3f);
    for (float& weight : weights) weight += 1.0f;
    file.tensor(name, WeightType::kF32, {embedding}, encode_weights(WeightType::kF32, weights));
  };
  const auto matrix = [&](const std::string& name, WeightType type, std::uint64_t rows,
                          std::uint64_t cols) {
    // Scaled so that activations keep their size from layer to layer.
    const float scale = 2.0f / std::sqrt(static_cast<float>(cols));
    const auto weights = random.reals(static_cast<std::int64_t>(rows * cols), scale);
    file.tensor(name, type, {cols, rows}, encode_weights(type, weights));
  };
  const std::uint64_t tokens = vocabulary.tokens.size();
  const std::uint64_t kv_rows = options.kv_heads * options.head_dim;
  matrix("token_embd.weight", WeightType::kQ8_0, tokens, embedding);
  if (!options.tied) matrix("output.weight", WeightType::kF16, tokens, embedding);
  norm("output_norm.weight");
  for (std::uint32_t i = 0; i < options.layers; ++i) {
    const std::string layer = "blk." + std::to_string(i) + ".";
    norm(layer + "attn_norm.weight");
    matrix(layer + "attn_q.weight", options.matrices, embedding, embedding);
    matrix(layer + "attn_k.weight", options.matrices, kv_rows, embedding);
    matrix(layer + "attn_v.weight", options.matrices, kv_rows, embedding);
    matrix(layer + "attn_output.weight", options.matrices, embedding, embedding);
    norm(layer + "ffn_norm.weight");
    matrix(layer + "ffn_gate.weight", options.matrices, options.feed_forward, embedding);
    matrix(layer + "ffn_up.weight", options.matrices, options.feed_forward, embedding);
    matrix(layer + "ffn_down.weight", options.matrices, embedding, options.feed_forward);
  }
  if (options.with) options.with(file);
  return file.bytes();
}

TemporaryFile::TemporaryFile(std::string_view bytes) {
  static std::atomic<int> count{0};
  path_ = std::filesystem::temp_directory_path() /
          ("kvmesh-test-" + std::to_string(::getpid()) + "-" + std::to_string(count++) + ".gguf");
  std::ofstream(path_, std::ios::binary | std::ios::trunc);
  rewrite(bytes);
}

TemporaryFile::~TemporaryFile() {
  std::error_code ignored;
  std::filesystem::remove(path_, ignored);
}

void TemporaryFile::rewrite(std::string_view bytes) const {
  // Does not truncate: file systems write a truncated and rewritten file to disk at once.
  std::filesystem::resize_file(path_, bytes.size());
  std::fstream out(path_, std::ios::binary | std::ios::in | std::ios::out);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!out) throw std::runtime_error("cannot write " + path());
}

}  // namespace kvmesh::test
