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
#include "launch/cli/device_stage.hpp"
#include "launch/engine/llama.hpp"
#include "launch/engine/sampling.hpp"

namespace kvmesh::launch {

struct GeneratorOptions {
  int page_size = 16;
  std::int64_t pages_per_rank = 0;
  double memory_fraction = 0;  ///< as in CacheOptions: one of the two
  Placement placement = Placement::kBalanced;
  std::int64_t home_threshold_tokens = 0;
  Dtype kv_dtype = Dtype::kBFloat16;
  bool reproducible = false;  ///< the cache is, and so the text
  engine::SamplingOptions sampling;
};

/// One conversation: a model, a cache, one sequence in it. Collective to make: every rank of the
/// mesh makes one and calls it alike. The file and the mesh must outlive it.
class Generator {
 public:
  /// @throws AgreedError (the model's), InvalidArgument (heads that head_parallel does not divide),
  /// OutOfMemory; on every rank.
  Generator(Mesh& mesh, const engine::GgufFile& file, const GeneratorOptions& options);

  /// Collective. Takes the tokens in and returns the one that follows; on every rank the same.
  /// @throws OutOfPages.
  engine::Token feed(std::span<const engine::Token> tokens);

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
  SequenceId sequence_;
  std::optional<StepPlan> step_;  // the last, planned again for each
  engine::RowGather gather_heads_;
  engine::Sampler sampler_;
  bool greedy_;
  std::vector<float> attended_;  // this rank's heads
  DeviceStage q_, k_, v_, o_;    // where the cache is on another device than the model
};

}  // namespace kvmesh::launch
