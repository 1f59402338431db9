#include "launch/cli/generator.hpp"

#include <array>
#include <numeric>

#include "launch/cli/agree.hpp"
#include "launch/cli/model.hpp"

namespace kvmesh::launch {
namespace {

TierOptions tiers_of(Mesh& mesh, const engine::GgufFile& file, TierOptions tiers) {
  if (!tiers.directory.empty()) tiers.model = name_of_content(mesh, file);
  return tiers;
}

CacheOptions cache_options(const engine::LlamaShape& shape, const GeneratorOptions& options,
                           const TierOptions& tiers) {
  return {.layers = shape.layers,
          .q_heads = shape.q_heads,
          .kv_heads = shape.kv_heads,
          .k_dim = shape.head_dim,
          .page_size = options.page_size,
          .pages_per_rank = options.pages_per_rank,
          .memory_fraction = options.memory_fraction,
          .dtype = options.kv_dtype,
          .placement = options.placement,
          .home_threshold_tokens = options.home_threshold_tokens,
          .reproducible = options.reproducible,
          .prefix = {.enabled = true, .hash = PrefixHash::kXxh3},
          .tiers = tiers};
}

// Reads this rank's share of the weights. Collective.
std::unique_ptr<engine::Llama> agreed_llama(Mesh& mesh, const engine::GgufFile& file) {
  std::unique_ptr<engine::Llama> llama;
  agree(mesh.world(),
        [&] { llama = std::make_unique<engine::Llama>(file, mesh.world(), mesh.threads()); });
  return llama;
}

}  // namespace

Generator::Generator(Mesh& mesh, const engine::GgufFile& file, const GeneratorOptions& options)
    : mesh_(mesh),
      llama_(agreed_llama(mesh, file)),
      cache_(mesh, cache_options(llama_->shape(), options, tiers_of(mesh, file, options.tiers))),
      key_(cache_.make_prefix_key()),
      sequence_(cache_.create()),
      gather_heads_(mesh.head_comm()),
      sampler_(options.sampling),
      greedy_(options.sampling.temperature == 0.0),
      q_(mesh),
      k_(mesh),
      v_(mesh),
      o_(mesh) {}

std::int64_t Generator::begin(std::span<const engine::Token> tokens) {
  cache_.publish(sequence_, key_);
  cache_.erase(sequence_);
  key_.truncate(0);
  // The last token is computed in any case: its output is the next token.
  key_.append(tokens.first(tokens.size() - 1));
  sequence_ = cache_.create_with_prefix(key_);
  const std::int64_t cached = cache_.length(sequence_);
  key_.truncate(cached);
  return cached;
}

engine::Token Generator::feed(std::span<const engine::Token> tokens) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  std::vector<std::int64_t> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), cache_.allocator().length(sequence_));

  const std::array batch{BatchEntry{sequence_, count}};
  if (step_) {
    cache_.replan(*step_, batch);
  } else {
    step_.emplace(cache_.plan(batch));
  }
  llama_->forward(tokens, positions, [&](const engine::Attention& layer) { attend(layer); });
  key_.append(tokens);
  return greedy_ ? llama_->greedy(count - 1) : sampler_.pick(llama_->logits(count - 1));
}

void Generator::flush_tiers() {
  cache_.publish(sequence_, key_);
  cache_.flush_tiers();
}

std::vector<engine::Token> Generator::import_from(ByteSource* source) {
  ImportedSequence imported = cache_.import_sequence(source);
  PrefixKey key = cache_.make_prefix_key();
  key.append(imported.header.token_ids);
  cache_.publish(imported.sequence, key);
  cache_.erase(imported.sequence);
  return std::move(imported.header.token_ids);
}

void Generator::attend(const engine::Attention& layer) {
  const LayerInput input{my_heads(layer.q), my_heads(layer.k), my_heads(layer.v)};
  if (mesh_.head_parallel() == 1) return run(layer.layer, input, layer.o);
  // The ranks of a row hold different heads; the next matrix needs all of them.
  const std::int64_t tokens = layer.q.size(0), heads = input.q.size(1), dim = layer.q.size(2);
  attended_.resize(static_cast<std::size_t>(tokens * heads * dim));
  run(layer.layer, input, tensor(attended_.data(), {tokens, heads, dim}));
  const std::array rows{layer.q.size(1) * dim};
  gather_heads_(rows, tokens, attended_,
                {static_cast<float*>(layer.o.data), static_cast<std::size_t>(tokens * rows[0])},
                "gather_heads");
}

// The model's layers run on the CPU; the cache may be on a GPU.
void Generator::run(int layer, const LayerInput& host, const TensorView& o) {
  step_->run(layer, {q_.put(host.q), k_.put(host.k), v_.put(host.v)}, {.o = o_.room_for(o)});
  o_.fetch(o);
}

// Returns a view of this rank's heads in [tokens, heads, dim].
ConstTensorView Generator::my_heads(const ConstTensorView& all) const {
  const IndexRange mine = share_of(all.size(1), mesh_.head_rank(), mesh_.head_parallel());
  ConstTensorView view = all;
  view.data = static_cast<const float*>(all.data) + mine.begin * all.stride(1);
  view.shape[1] = mine.size();
  return view;
}

}  // namespace kvmesh::launch
