// A language model on a kvmesh cache: the example of an engine.
//
//   tokens -> Llama::forward -> for each layer: StepPlan::run (append, attend, combine) -> logits
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kvmesh/kvmesh.hpp"
#include "launch/device/device_stage.hpp"
#include "launch/engine/llama.hpp"
#include "launch/engine/sampling.hpp"

namespace kvmesh::launch {

struct GeneratorOptions {
  int page_size = 16;
  std::int64_t pages_per_rank = 0;
  double memory_fraction = 0;  ///< instead of pages_per_rank; as in CacheOptions
  Placement placement = Placement::kBalanced;
  std::int64_t home_threshold_tokens = 0;
  Dtype kv_dtype = Dtype::kBFloat16;
  bool reproducible = false;  ///< the cache is reproducible, and so is the text
  /// The tiers for pages that the cache has no room for. The file tier's model is named by the
  /// content of the model's file.
  TierOptions tiers{};
  engine::SamplingOptions sampling;
};

/// A model, and a cache with one sequence at a time. The pages of earlier sequences stay in the
/// prefix cache, so a text that begins as an earlier one is not computed again from its start.
/// REQUIRES: the file and the mesh outlive it; every rank of the mesh makes one and makes the same
/// calls.
class Generator {
 public:
  /// @throws AgreedError if the model cannot be used, InvalidArgument if head_parallel does not
  /// divide the heads, OutOfMemory; each on every rank. Collective.
  Generator(Mesh& mesh, const engine::GgufFile& file, const GeneratorOptions& options);

  /// Ends the sequence, if there is one, and begins another for a text that starts with `tokens`.
  /// Returns how many leading tokens the cache holds already; at least the last one is left to
  /// feed. REQUIRES: there is a token.
  std::int64_t begin(std::span<const engine::Token> tokens);

  /// Appends the tokens and returns the next one, the same on every rank.
  /// REQUIRES: begin was called.
  /// @throws OutOfPages.
  /// Collective.
  engine::Token feed(std::span<const engine::Token> tokens);

  /// Writes the sequence, with its tokens, to the sink of world rank 0.
  /// @throws StreamError on every rank.
  /// Collective.
  void export_to(ByteSink* sink) { cache_.export_sequence(sequence_, sink, &key_); }
  /// Takes the full pages of the stream that world rank 0 has into the prefix cache, so that
  /// begin() finds them. Returns the stream's tokens.
  /// @throws StreamError on every rank; OutOfPages.
  /// Collective.
  std::vector<engine::Token> import_from(ByteSource* source);

  /// Stores the full pages of all sequences in the file tier, if there is one. Blocks.
  void flush_tiers();

  const engine::LlamaShape& shape() const { return llama_->shape(); }
  const KvCache& cache() const { return cache_; }
  std::span<const PageId> pages() const { return cache_.allocator().pages(sequence_); }

 private:
  void attend(const engine::Attention& layer);
  void run(int layer, const LayerInput& host, const TensorView& o);
  ConstTensorView my_heads(const ConstTensorView& all) const;

  Mesh& mesh_;
  std::unique_ptr<engine::Llama> llama_;
  KvCache cache_;
  PrefixKey key_;  // of the sequence's tokens
  SequenceId sequence_;
  std::optional<StepPlan> step_;  // the last one; each step replans it
  engine::RowGather gather_heads_;
  engine::Sampler sampler_;
  bool greedy_;
  std::vector<float> attended_;  // this rank's heads
  DeviceStage q_, k_, v_, o_;    // used if the cache is on a GPU
};

}  // namespace kvmesh::launch
