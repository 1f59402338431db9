#include "tests/contracts/layer_groups_contract.hpp"

#include <numeric>

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

/// Layer 0 sees all; 1 has pages of another kind and dtype; 2 other heads and a window; 3 states.
CacheOptions with_prefixes(const Place& place) {
  CacheOptions options = four_layers(place);
  options.groups = {
      {.layers = {1}, .dtype = Dtype::kFloat8E4M3, .page_kind = PageKind::kLatent, .page_share = 2},
      {.layers = {2}, .q_heads = 2, .dtype = Dtype::kFloat16, .window = 9},
      {.layers = {3}, .state_bytes = 1040}};
  options.prefix.enabled = true;
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

/// The names of a prompt's first tokens.
std::vector<std::int32_t> names_to(std::int64_t end) {
  std::vector<std::int32_t> names(static_cast<std::size_t>(end));
  std::iota(names.begin(), names.end(), 1000);
  return names;
}

/// A prompt is published where its steps end, and found in all groups together: with the last pages
/// of the window, and with the state of that position. The found pages stay as they are when other
/// sequences go on from them, while pages move, and when no sequence holds them any more.
TEST_P(LayerGroupsContract, FindPrefixesOfAllGroups) {
  on_each_placement(GetParam(), with_prefixes(GetParam()), [](CheckedCache& cache) {
    const SequenceId first = cache.create();
    for (const std::int64_t end : {16, 24, 40}) {
      const std::int64_t begin = cache.cache().length(first);
      EXPECT_TRUE(cache.step({{first, end - begin, 3}}));
      cache.publish(first, names_to(end));
    }
    const auto find = [&](std::int64_t end, std::int64_t expected) {
      const SequenceId found = cache.create_with_prefix(names_to(end));
      EXPECT_EQ(cache.cache().length(found), expected);
      EXPECT_EQ(cache.allocator().pages(found)[0], cache.allocator().pages(first)[0]);
      return found;
    };
    const SequenceId second = find(39, 24), third = find(17, 16);
    EXPECT_EQ(cache.cache().allocator(2).released_pages(second), 2);
    for (int i = 0; i < 3; ++i) {
      cache.rebalance_now({.limit = 3});
      EXPECT_TRUE(cache.step({{second, 2}, {first, 1}, {third, 9, 4}}));
    }
    const SequenceId fourth = cache.fork(second);
    EXPECT_TRUE(cache.step({{fourth, 1}, {second, 3}}));
    const SequenceId fifth = find(50, 40);
    cache.erase(first);
    cache.rebalance();
    EXPECT_TRUE(cache.step({{fifth, 2}, {fourth, 1}, {third, 1}}));
    for (const SequenceId sequence : {second, third, fourth, fifth}) cache.erase(sequence);
    cache.rebalance();
    const SequenceId last = cache.create_with_prefix(names_to(30));
    EXPECT_EQ(cache.cache().length(last), 24) << "cached";
    EXPECT_TRUE(cache.step({{last, 5}}));
  });
}

}  // namespace
}  // namespace kvmesh::test
