// Layer groups, windows that give up pages, states, and several kinds of layers in one plan, on a
// GPU: against float64, and against one rank of the CPU, while free pages are full of NaN.
#include "tests/contracts/on_each_placement.hpp"

namespace kvmesh::test {
namespace {

using OneGpu = OnCuda<LoopbackRanks<1>, BFloat16Sizes>;

CacheOptions four_layers() {
  CacheOptions options =
      small_cache({8, 2, 128, 128, 8, Dtype::kBFloat16, PageKind::kKv, KvScales{}});
  options.layers = 4;
  options.pages_per_rank = 40;
  return options;
}

/// Layers 0 and 3 see all; 1 a window; 2 has other heads, dims and another window.
CacheOptions hybrid() {
  CacheOptions options = four_layers();
  options.groups = {{.layers = {1}, .window = 20},
                    {.layers = {2}, .q_heads = 2, .k_dim = 64, .window = 9}};
  return options;
}

void serve(const StepOptions& options) {
  on_each_placement(place_of<OneGpu>(), hybrid(), [&](CheckedCache& cache) {
    const SequenceId first = cache.create(), second = cache.create();
    const auto step = [&](const std::vector<BatchEntry>& batch) {
      EXPECT_TRUE(cache.step(batch, options));
    };
    for (int i = 0; i < 3; ++i) step({{first, 15, 4}, {second, 3, 2}});
    for (int i = 0; i < 9; ++i) step({{second, 3}, {first, 1}});
    const SequenceId third = cache.fork(first);
    for (int i = 0; i < 9; ++i) step({{third, 2}, {second, 1}, {first, 4}});
    cache.truncate(first, cache.allocator().length(first) - 3);
    cache.erase(second);
    for (int i = 0; i < 4; ++i) step({{first, 1}, {third, 1}});
    EXPECT_GT(cache.cache().allocator(1).released_pages(first), 3);
    EXPECT_GT(cache.cache().allocator(2).released_pages(first), 5);
  });
}

/// Attention in layers 0 and 3 between states in the others.
CacheOptions with_states() {
  CacheOptions options = four_layers();
  options.groups = {{.layers = {1, 2}, .page_share = 1, .state_bytes = 1040}};
  return options;
}

/// States are what was written last, whatever forks, truncations and moves did in between.
TEST(LayerGroupsOnGpu, HaveStates) {
  on_each_placement(place_of<OneGpu>(), with_states(), [&](CheckedCache& cache) {
    const SequenceId first = cache.create(), second = cache.create();
    const auto step = [&](const std::vector<BatchEntry>& batch) {
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
  });
}

TEST(LayerGroupsOnGpu, AreServed) { serve({}); }

TEST(LayerGroupsOnGpu, AreReplannedWithSinks) { serve({.sinks = true, .replanned = true}); }

TEST(LayerGroupsOnGpu, HaveKindsOfLayers) {
  const std::vector<LayerKind> kinds{{.layers = {3, 2}, .mask = mods::sliding_window(5)}};
  serve({.plan = {.kinds = kinds}});
  serve({.plan = {.kinds = kinds, .limits = StepLimits{.sequences = 3, .query_tokens = 16}},
         .replanned = true});
}

}  // namespace
}  // namespace kvmesh::test
