#include "tests/contracts/models_contract.hpp"

#include <cmath>

#include "tests/contracts/cross_attention.hpp"

namespace kvmesh::test {
namespace {

/// The layers of which `is_one` is true.
std::vector<int> layers_where(int layers, bool (*is_one)(int)) {
  std::vector<int> numbers;
  for (int layer = 0; layer < layers; ++layer) {
    if (is_one(layer)) numbers.push_back(layer);
  }
  return numbers;
}

}  // namespace

Models::Sizes Models::sizes() {
  if (GetParam().device == DeviceChoice::kCpu) return {};
  return {.dtype = Dtype::kBFloat16,
          .page_size = 8,
          .dim = 128,
          .gemma_dim = 256,
          .small_dim = 64,
          .latent_heads = 128,
          .latent_dim = 576,
          .latent_v_dim = 512};
}

CacheOptions Models::model(int layers, int q_heads, int kv_heads, int dim) {
  return {.layers = layers,
          .q_heads = q_heads,
          .kv_heads = kv_heads,
          .k_dim = dim,
          .page_size = sizes().page_size,
          .pages_per_rank = 40,
          .dtype = sizes().dtype,
          .home_threshold_tokens = 16};
}

void Models::serve(const CacheOptions& cache_options, const StepOptions& options) {
  on_each_placement(GetParam(), cache_options, [&](CheckedCache& cache) {
    const SequenceId first = cache.create(), second = cache.create();
    const auto step = [&](const std::vector<BatchEntry>& batch) {
      EXPECT_TRUE(cache.step(batch, options));
    };
    step({{first, 21, 4}, {second, 9, 2}});
    step({{first, 7}});
    for (int i = 0; i < 4; ++i) step({{second, 1}, {first, 1}});
    const SequenceId third = cache.fork(first);
    for (int i = 0; i < 4; ++i) step({{third, 1}, {second, 2}, {first, 1}});
    cache.rebalance();
    step({{third, 1}, {second, 1}, {first, 1}});
  });
}

TEST_P(Models, Llama3) { serve(model(2, 8, 2, sizes().dim), {}); }

// Queries and keys are normalised before they come here; the head dim is not hidden / heads.
TEST_P(Models, Qwen3) { serve(model(2, 16, 8, sizes().dim), {}); }

TEST_P(Models, Mistral) {
  CacheOptions options = model(2, 8, 2, sizes().dim);
  options.window = 12;
  serve(options, {});
}

TEST_P(Models, Mixtral) { serve(model(2, 8, 2, sizes().dim), {}); }

TEST_P(Models, Gemma2) {
  CacheOptions options = model(4, 4, 2, sizes().gemma_dim);
  options.groups = {{.layers = layers_where(4, [](int layer) { return layer % 2 == 0; }),
                     .window = 12,
                     .page_share = 1}};
  serve(options, {.plan = {.score = mods::soft_cap(50), .scale = 1 / std::sqrt(24.0f)}});
}

TEST_P(Models, Gemma3) {
  CacheOptions options = model(7, 4, 2, sizes().gemma_dim);
  options.groups = {{.layers = layers_where(7, [](int layer) { return layer % 6 != 5; }),
                     .window = 8,
                     .page_share = 0.5}};
  serve(options, {.plan = {.scale = 1 / std::sqrt(42.0f)}});
}

TEST_P(Models, GptOss) {
  CacheOptions options = model(4, 16, 2, sizes().small_dim);
  options.groups = {{.layers = layers_where(4, [](int layer) { return layer % 2 == 0; }),
                     .window = 8,
                     .page_share = 0.5}};
  serve(options, {.sinks = true});
}

TEST_P(Models, DeepSeekV3) {
  CacheOptions options = model(2, sizes().latent_heads, 1, sizes().latent_dim);
  options.v_dim = sizes().latent_v_dim;
  options.page_kind = PageKind::kLatent;
  serve(options, {.plan = {.scale = 1 / std::sqrt(24.0f)}});
}

/// The cache of an encoder's keys beside that of the decoder's own (Whisper, T5, BART).
TEST_P(Models, CrossAttention) {
  on_each_placement(GetParam(), model(2, 8, 8, sizes().small_dim),
                    [](CheckedCache& cache) { cross_attend(cache); });
}

/// Attention in each fourth layer, states of Mamba or of linear attention in the others (Jamba,
/// Nemotron-H, Qwen3-Next).
TEST_P(Models, MambaHybrid) {
  CacheOptions options = model(8, 8, 2, sizes().dim);
  options.groups = {{.layers = layers_where(8, [](int layer) { return layer % 4 != 3; }),
                     .page_share = 1,
                     .state_bytes = 1040}};
  serve(options, {});
}

/// Layers of other masks over the same page tables: nothing is given up.
TEST_P(Models, KindsOfLayersInOneGroup) {
  const CacheOptions options = model(5, 4, 2, sizes().dim);
  const std::vector<LayerKind> kinds{
      {.layers = {1, 3}, .mask = mods::sliding_window(6)},
      {.layers = {4}, .mask = mods::no_mask(), .score = mods::soft_cap(2), .scale = 0.5f}};
  serve(options, {.plan = {.score = mods::alibi(4), .kinds = kinds}});
  serve(options, {.plan = {.kinds = kinds}, .sinks = true, .replanned = true});
  serve(options,
        {.plan = {.kinds = kinds, .limits = StepLimits{.sequences = 4, .query_tokens = 24}}});
}

TEST_P(Models, KindsOfLayersInSeveralGroups) {
  CacheOptions options = model(5, 4, 2, sizes().dim);
  options.groups = {{.layers = {3, 4}, .kv_heads = 1, .k_dim = 8, .window = 10}};
  const StepOptions step{.plan = {.kinds = {{.layers = {1, 4}, .mask = mods::sliding_window(5)}}}};
  serve(options, step);
  options = model(2, 4, 2, sizes().dim);
  options.reproducible = true;
  serve(options, {.plan = {.kinds = {{.layers = {1}, .mask = mods::sliding_window(5)}}}});
}

}  // namespace kvmesh::test
