#include "launch/engine/llama_support.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

namespace kvmesh::engine {
namespace {

constexpr std::string_view kPrefix = "llama.";

// Keys after the prefix. Those of the second half do not change the result, or are checked below.
constexpr std::array<std::string_view, 21> kKeys{"attention.head_count",
                                                 "attention.head_count_kv",
                                                 "attention.key_length",
                                                 "attention.layer_norm_rms_epsilon",
                                                 "attention.value_length",
                                                 "block_count",
                                                 "context_length",
                                                 "embedding_length",
                                                 "feed_forward_length",
                                                 "rope.dimension_count",
                                                 "rope.freq_base",
                                                 "expert_count",
                                                 "expert_used_count",
                                                 "rope.scale_linear",
                                                 "rope.scaling.attn_factor",
                                                 "rope.scaling.factor",
                                                 "rope.scaling.finetuned",
                                                 "rope.scaling.original_context_length",
                                                 "rope.scaling.type",
                                                 "tensor_data_layout",
                                                 "vocab_size"};

constexpr std::array<std::string_view, 4> kTensors{"token_embd.weight", "output.weight",
                                                   "output_norm.weight", "rope_freqs.weight"};
constexpr std::array<std::string_view, 9> kLayerTensors{
    "attn_norm.weight", "attn_q.weight",   "attn_k.weight", "attn_v.weight",  "attn_output.weight",
    "ffn_norm.weight",  "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"};

[[noreturn]] void fail(const GgufFile& file, std::string_view what) {
  throw ModelError(fmt::format("{}: {}", file.path(), what));
}

bool contains(std::span<const std::string_view> names, std::string_view name) {
  return std::ranges::find(names, name) != names.end();
}

// Refuses scaled positions. With type "none" they are not scaled, whatever the factor is; without a
// type a factor means linear scaling.
void check_rope(const GgufFile& file) {
  const auto* type = file.find<std::string_view>("llama.rope.scaling.type");
  if (type != nullptr && *type == "none") return;
  if (type != nullptr && *type != "linear") {
    fail(file, fmt::format("rope scaling '{}' is not supported; use a model without it",
                           printable(*type)));
  }
  for (const char* key :
       {"llama.rope.scaling.factor", "llama.rope.scale_linear", "llama.rope.scaling.attn_factor"}) {
    const auto* factor = file.find<double>(key);
    if (factor != nullptr && *factor != 1.0) {
      fail(file, fmt::format("rope scaling is not supported, and {} is {}; use a model without it",
                             key, *factor));
    }
  }
}

// True if `name` is blk.LAYER.PART with a part that every layer has.
bool is_of_layer(std::string_view name, int layers) {
  constexpr std::string_view kBlock = "blk.";
  if (!name.starts_with(kBlock)) return false;
  name.remove_prefix(kBlock.size());
  int layer = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  if (error != std::errc{} || layer < 0 || layer >= layers) return false;
  name.remove_prefix(static_cast<std::size_t>(end - name.data()));
  return name.starts_with('.') && contains(kLayerTensors, name.substr(1));
}

}  // namespace

void check_architecture(const GgufFile& file) {
  const auto architecture = file.get<std::string_view>("general.architecture");
  if (architecture != "llama") {
    fail(file, fmt::format("architecture '{}' is not supported: this program runs 'llama'; use a "
                           "model of that family, SmolLM2 for example",
                           printable(architecture)));
  }
  check_rope(file);
  const auto* experts = file.find<std::int64_t>("llama.expert_count");
  if (experts != nullptr && *experts > 0) {
    fail(file, "mixtures of experts are not supported; use a dense model");
  }
}

void check_keys(const GgufFile& file) {
  for (const auto& [key, value] : file.metadata()) {
    if (key.starts_with(kPrefix) && !contains(kKeys, key.substr(kPrefix.size()))) {
      fail(file, fmt::format("key {} is not supported: this program does not know what it changes; "
                             "use a plain llama model",
                             printable(key)));
    }
  }
}

void check_tensors(const GgufFile& file, int layers) {
  for (const auto& [name, tensor] : file.tensors()) {
    if (contains(kTensors, name) || is_of_layer(name, layers)) continue;
    fail(file, fmt::format("tensor {} is not supported: this program would compute without it; use "
                           "a plain llama model of {} layers",
                           printable(name), layers));
  }
}

}  // namespace kvmesh::engine
