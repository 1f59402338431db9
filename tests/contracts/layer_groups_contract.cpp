#include "tests/contracts/layer_groups_contract.hpp"

#include "tests/contracts/on_each_placement.hpp"

namespace kvmesh::test {
namespace {

CacheOptions four_layers(const Place& place) {
  CacheOptions options = place.small();
  options.layers = 4;
  options.page_size = 8;
  options.pages_per_rank = 40;
  return options;
}

/// Layers 0 and 3 see all; 1 a window; 2 has other heads, dims and another window.
CacheOptions with_windows(const Place& place) {
  CacheOptions options = four_layers(place);
  options.groups = {{.layers = {1}, .window = 20},
                    {.layers = {2}, .q_heads = 2, .k_dim = options.k_dim / 2, .window = 9}};
  return options;
}

/// Layer 1 has pages of another kind and dtype, and more of them; 2 has other heads and another
/// dtype.
CacheOptions with_formats(const Place& place) {
  CacheOptions options = four_layers(place);
  options.groups = {
      {.layers = {1}, .dtype = Dtype::kFloat8E4M3, .page_kind = PageKind::kLatent, .page_share = 2},
      {.layers = {2}, .q_heads = 2, .dtype = Dtype::kFloat16, .window = 9}};
  return options;
}

/// Attention in layers 0 and 3 between states in the others.
CacheOptions with_states(const Place& place) {
  CacheOptions options = four_layers(place);
  options.groups = {{.layers = {1, 2}, .page_share = 1, .state_bytes = 1040}};
  return options;
}

/// Two prompts in chunks, tokens one by one, a fork, a truncation, a sequence that ends, and pages
/// that move, beside the steps and between them. Returns the first sequence.
SequenceId serve(CheckedCache& cache, const StepOptions& options) {
  const SequenceId first = cache.create(), second = cache.create();
  const auto step = [&](const std::vector<BatchEntry>& batch) {
    cache.rebalance_now({.limit = 3});
    EXPECT_TRUE(cache.step(batch, options));
  };
  for (int i = 0; i < 3; ++i) step({{first, 15, 4}, {second, 3, 2}});
  for (int i = 0; i < 4; ++i) step({{second, 3}, {first, 1}});
  const SequenceId third = cache.fork(first);
  for (int i = 0; i < 5; ++i) step({{third, 2}, {second, 1}, {first, 4}});
  cache.truncate(first, cache.allocator().length(first) - 3);
  cache.erase(second);
  cache.rebalance();
  for (int i = 0; i < 3; ++i) step({{first, 1}, {third, 1}});
  return first;
}

void serve_windows(const Place& place, const StepOptions& options, int head_parallel = 1) {
  on_each_placement(
      place, with_windows(place),
      [&](CheckedCache& cache) {
        const SequenceId first = serve(cache, options);
        EXPECT_GT(cache.cache().allocator(1).released_pages(first), 3);
        EXPECT_GT(cache.cache().allocator(2).released_pages(first), 5);
      },
      head_parallel);
}

TEST_P(LayerGroupsContract, WindowsGiveUpPages) { serve_windows(GetParam(), {}); }

TEST_P(LayerGroupsContract, WindowsOfHeadsThatRanksDivide) {
  serve_windows(GetParam(), {.plan = {.scatter = Scatter::kTokens}}, 2);
}

TEST_P(LayerGroupsContract, AreReplannedWithSinks) {
  serve_windows(GetParam(), {.sinks = true, .replanned = true});
}

TEST_P(LayerGroupsContract, HaveKindsOfLayers) {
  const std::vector<LayerKind> kinds{{.layers = {3, 2}, .mask = mods::sliding_window(5)}};
  const StepLimits limits{.sequences = 3, .query_tokens = 16};
  serve_windows(GetParam(), {.plan = {.kinds = kinds}});
  serve_windows(GetParam(), {.plan = {.kinds = kinds, .limits = limits}, .replanned = true});
}

/// On four ranks some get none of a layer's two query heads.
TEST_P(LayerGroupsContract, HaveFormats) {
  on_each_placement(GetParam(), with_formats(GetParam()), [](CheckedCache& cache) {
    serve(cache, {.plan = {.scatter = Scatter::kHeads}});
  });
}

/// States are what was written last, whatever forks, truncations and moves did in between. With
/// heads divided, each rank has states of its own.
TEST_P(LayerGroupsContract, HaveStates) {
  for (const int head_parallel : {1, 2}) {
    const auto script = [](CheckedCache& cache) {
      const SequenceId first = cache.create(), second = cache.create();
      const auto step = [&](const std::vector<BatchEntry>& batch) {
        cache.rebalance_now({.limit = 3});
        EXPECT_TRUE(cache.step(batch, {}));
      };
      step({{first, 21, 4}, {second, 9, 2}});
      for (int i = 0; i < 3; ++i) step({{second, 1}, {first, 1}});
      const SequenceId third = cache.fork(first);
      for (int i = 0; i < 3; ++i) step({{third, 2}, {second, 1}, {first, 1}});
      cache.truncate(second, cache.allocator().length(second) - 2);
      cache.erase(first);
      cache.rebalance();
      step({{third, 1}, {second, 1}});
      EXPECT_EQ(cache.cache().allocator(1).pages(third).size(), 1u);
    };
    on_each_placement(GetParam(), with_states(GetParam()), script, head_parallel);
  }
}

}  // namespace
}  // namespace kvmesh::test
