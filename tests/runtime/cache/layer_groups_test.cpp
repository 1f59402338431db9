// Caches with several groups of layers: what the options mean, and that every operation is applied
// to all groups or to none. That the numbers are right is in the contract suites.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kvmesh/kv_cache.hpp"
#include "tests/runtime/cache/cache_fixture.hpp"
#include "tests/support/ranks.hpp"

namespace kvmesh::test {
namespace {

CacheOptions two_groups() {
  return {.layers = 3,
          .q_heads = 4,
          .kv_heads = 2,
          .k_dim = 8,
          .page_size = 4,
          .pages_per_rank = 6,
          .dtype = Dtype::kFloat32,
          .groups = {{.layers = {1},
                      .kv_heads = 1,
                      .k_dim = 16,
                      .dtype = Dtype::kBFloat16,
                      .page_share = 0.4}}};
}

class LayerGroups : public testing::Test {
 protected:
  std::string error_of(const CacheOptions& options) {
    try {
      KvCache(mesh_, options);
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "";
  }

  Mesh mesh_{make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCpu}};
};

TEST_F(LayerGroups, TakeUnsetOptionsFromTheCache) {
  KvCache cache(mesh_, two_groups());
  EXPECT_EQ(cache.groups(), 2);
  EXPECT_EQ(cache.group_of(0), 0);
  EXPECT_EQ(cache.group_of(1), 1);
  EXPECT_EQ(cache.group_of(2), 0);
  const CacheOptions rest = cache.group_options(0), group = cache.group_options(1);
  EXPECT_EQ(rest.layers, 2);
  EXPECT_EQ(rest.pages_per_rank, 6);
  EXPECT_EQ(group.layers, 1);
  EXPECT_EQ(group.q_heads, 4);
  EXPECT_EQ(group.kv_heads, 1);
  EXPECT_EQ(group.k_dim, 16);
  EXPECT_EQ(group.v_dim, 16);
  EXPECT_EQ(group.pages_per_rank, 3) << "0.4 of 6, rounded up";
  EXPECT_EQ(cache.page_format(1).planes[0].dtype, Dtype::kBFloat16);
  EXPECT_EQ(cache.planes(0)[0].shape[0], 6);
  EXPECT_EQ(cache.planes(1)[0].shape[0], 3);
}

TEST_F(LayerGroups, ShareBytesByTheirPages) {
  CacheOptions options = two_groups();
  options.pages_per_rank = 0;
  options.bytes = 1'000'000;
  const CacheOptions agreed = KvCache(mesh_, options).options();
  EXPECT_LE(KvCache(mesh_, options).pool_bytes(), options.bytes);
  options.bytes = 0;
  options.pages_per_rank = agreed.pages_per_rank + 2;  // whole pages of the system
  EXPECT_GT(KvCache(mesh_, options).pool_bytes(), 1'000'000);
}

TEST_F(LayerGroups, RefuseListsThatAreNoPartition) {
  CacheOptions options = two_groups();
  options.groups[0].layers = {3};
  EXPECT_NE(error_of(options).find("layer 3 of a group, of 3"), std::string::npos);
  options.groups[0].layers = {1, 1};
  EXPECT_NE(error_of(options).find("layer 1 is in two groups"), std::string::npos);
  options.groups[0].layers = {};
  EXPECT_NE(error_of(options).find("without layers"), std::string::npos);
  options.groups[0].layers = {0, 1, 2};
  EXPECT_NE(error_of(options).find("all 3 layers"), std::string::npos);
  options = two_groups();
  options.groups[0].page_share = 0;
  EXPECT_NE(error_of(options).find("page_share"), std::string::npos);
  options = two_groups();
  options.groups[0].kv_heads = 3;
  EXPECT_NE(error_of(options).find("do not divide"), std::string::npos);
}

TEST_F(LayerGroups, ChangeNothingWhereOneGroupIsFull) {
  KvCache cache(mesh_, two_groups());  // 24 tokens in group 0, 12 in group 1
  const SequenceId sequence = cache.create();
  static_cast<void>(cache.plan({{sequence, 9}}));
  const std::uint64_t before = cache.digest();
  EXPECT_FALSE(cache.try_plan({{sequence, 4}}));
  EXPECT_FALSE(cache.try_reserve(sequence, 13));
  EXPECT_EQ(cache.digest(), before);
  EXPECT_EQ(cache.length(sequence), 9);
  EXPECT_EQ(cache.allocator(0).capacity(sequence), 12) << "group 0 had room";

  const SequenceId child = cache.fork(sequence);
  EXPECT_FALSE(cache.try_make_writable(child, 0, 9)) << "group 1 has no page left for copies";
  EXPECT_EQ(cache.allocator(0).free_pages(), 3);
  cache.erase(sequence);
  EXPECT_TRUE(cache.try_plan({{child, 3}}));
  for (int group = 0; group < cache.groups(); ++group) {
    EXPECT_EQ(cache.allocator(group).length(child), 12);
    cache.allocator(group).verify_integrity();
  }
}

TEST_F(LayerGroups, HaveABlockMaskOnlyForHeadsThatAllHave) {
  CacheOptions options = two_groups();
  options.groups[0].q_heads = 2;
  KvCache cache(mesh_, options);
  const SequenceId sequence = cache.create();
  BlockMaskShape shape{.heads = 4, .q_len = 4, .kv_len = 4, .q_block = 4, .kv_block = 4};
  const BlockMask of_four = cache.make_block_mask(mods::causal(), shape);
  EXPECT_THROW(cache.plan({{sequence, 4}}, {.block_mask = &of_four}), InvalidArgument);
  shape.heads = 1;
  const BlockMask of_any = cache.make_block_mask(mods::causal(), shape);
  EXPECT_NO_THROW(cache.plan({{sequence, 4}}, {.block_mask = &of_any}));
}

/// Three groups, of which one sees 10 positions and another one its own alone.
CacheOptions with_windows() {
  CacheOptions options = two_groups();
  options.pages_per_rank = 12;
  options.prefix.enabled = true;
  options.groups = {{.layers = {1}, .window = 10}, {.layers = {2}, .window = 1}};
  return options;
}

TEST_F(LayerGroups, FindTheLongestPrefixThatAllHave) {
  KvCache cache(mesh_, with_windows());
  const auto key_of = [&](std::int32_t tokens) {
    PrefixKey key = cache.make_prefix_key();
    for (std::int32_t token = 0; token < tokens; ++token) key.append({&token, 1});
    return key;
  };
  const SequenceId first = cache.create();
  static_cast<void>(cache.plan({{first, 22}}));
  for (int i = 0; i < 8; ++i) static_cast<void>(cache.plan({{first, 1}}));
  cache.publish(first,
                key_of(30));  // 7 pages; in group 1 the last 2 of them and that of tokens 20 to 23
  EXPECT_EQ(cache.allocator(1).released_pages(first), 5);

  const PrefixMatch none = cache.match_prefix(key_of(25));
  EXPECT_EQ(none.tokens, 0) << "group 1 has given up pages 3 and 4";
  cache.release(none);
  const SequenceId second = cache.create_with_prefix(key_of(29));
  EXPECT_EQ(cache.length(second), 0) << "group 1 needs page 4, too";
  cache.erase(second);
  cache.erase(first);

  // Published while the prompt is all there, it is found up to any page.
  const SequenceId third = cache.create();
  static_cast<void>(cache.plan({{third, 22}}));
  cache.publish(third, key_of(22));
  cache.erase(third);
  const SequenceId fourth = cache.create_with_prefix(key_of(18));
  EXPECT_EQ(cache.length(fourth), 16) << "whole pages, since there is a window";
  EXPECT_EQ(cache.allocator(0).released_pages(fourth), 0);
  EXPECT_EQ(cache.allocator(1).released_pages(fourth), 1);
  EXPECT_EQ(cache.allocator(2).released_pages(fourth), 4);
  EXPECT_NO_THROW(cache.plan({{fourth, 2}}));
  for (int group = 0; group < cache.groups(); ++group) cache.allocator(group).verify_integrity();
  EXPECT_EQ(cache.allocator(0).length(fourth), cache.allocator(2).length(fourth));
}

TEST_F(LayerGroups, PublishInAllOrInNone) {
  KvCache cache(mesh_, with_windows());
  PrefixKey key = cache.make_prefix_key(), other = cache.make_prefix_key();
  key.append(std::vector<std::int32_t>{1, 2, 3, 4, 5, 6, 7, 8});
  other.append(std::vector<std::int32_t>{1, 2, 3, 4, 9, 9, 9, 9});
  const SequenceId sequence = cache.create();
  static_cast<void>(cache.plan({{sequence, 9}}));
  cache.publish(sequence, key);
  const std::uint64_t before = cache.digest();
  EXPECT_THROW(cache.publish(sequence, other), InvalidArgument);
  EXPECT_THROW(cache.truncate(sequence, 10), InvalidArgument);
  EXPECT_EQ(cache.digest(), before);
}

TEST_F(LayerGroups, RefuseBlockMasksAndWritesBehindAWindow) {
  KvCache cache(mesh_, with_windows());
  const SequenceId sequence = cache.create();
  static_cast<void>(cache.plan({{sequence, 20}}));
  const BlockMask mask = cache.make_block_mask(
      mods::causal(), {.q_len = 1, .kv_len = 24, .q_block = 4, .kv_block = 4, .q_start = {20}});
  EXPECT_THROW(cache.plan({{sequence, 1}}, {.block_mask = &mask}), InvalidArgument);
  static_cast<void>(cache.plan({{sequence, 1}}));
  const std::vector<float> row(4 * 16);
  const ConstTensorView k{row.data(), Dtype::kFloat32, {1, 2, 8}};
  const std::int64_t position = 2;
  EXPECT_NO_THROW(cache.write(0, sequence, {&position, 1}, k, k));
  EXPECT_THROW(cache.write(1, sequence, {&position, 1}, k, k), InvalidArgument);
}

TEST_F(LayerGroups, RefuseInvalidKindsOfLayers) {
  KvCache cache(mesh_, two_groups());
  const SequenceId sequence = cache.create();
  const std::vector<LayerKind> wrong[] = {
      {{.layers = {3}}}, {{.layers = {-1}}}, {{.layers = {0}}, {.layers = {1, 0}}}};
  for (const auto& kinds : wrong) {
    EXPECT_THROW(cache.plan({{sequence, 1}}, {.kinds = kinds}), InvalidArgument);
  }
  EXPECT_THROW(cache.plan({{sequence, 1}}, {.kinds = {{.layers = {0}, .scale = NAN}}}),
               InvalidArgument);
  const BlockMask mask =
      cache.make_block_mask(mods::causal(), {.q_len = 1, .kv_len = 4, .q_block = 4, .kv_block = 4});
  EXPECT_THROW(cache.plan({{sequence, 1}}, {.block_mask = &mask, .kinds = {{.layers = {0}}}}),
               InvalidArgument);
  EXPECT_EQ(cache.length(sequence), 0);
}

TEST_F(LayerGroups, PlanAKindOnlyWhereALayerHasIt) {
  KvCache cache(mesh_, two_groups());  // layers 0 and 2, and layer 1
  const SequenceId sequence = cache.create();
  static_cast<void>(cache.plan({{sequence, 9}}));
  const auto tiles = [&](const std::vector<LayerKind>& kinds) {
    return cache.plan({{sequence, 0, 1}}, {.kinds = kinds}).tiles().visited;
  };
  EXPECT_EQ(tiles({}), 3 * (2 + 1)) << "three pages, for each kv head of a layer of each group";
  EXPECT_EQ(tiles({{.layers = {1}, .mask = mods::sliding_window(1)}}), 3 * 2 + 1);
  EXPECT_EQ(tiles({{.layers = {2}, .mask = mods::sliding_window(1)}}), 3 * (2 + 1) + 2);
}

TEST(LayerGroupsOnRanks, MustBeTheSame) {
  std::string error;
  LoopbackRanks<2>::run([&](Communicator& comm) {
    Mesh mesh(comm, {.threads = 1, .device = DeviceChoice::kCpu});
    CacheOptions options = two_groups();
    if (comm.rank().value == 1) options.groups[0].page_share = 0.5;
    try {
      KvCache cache(mesh, options);
      ADD_FAILURE() << "the ranks differ";
    } catch (const InvalidArgument& refused) {
      if (comm.rank().value == 0) error = refused.what();
    }
  });
  EXPECT_NE(error.find("groups is of hash"), std::string::npos) << error;
}

TEST_F(LayerGroups, MoveNoTokenIfAWindowRefusesTheLengthThatRemains) {
  CacheOptions options = two_groups();
  options.groups = {{.layers = {1}, .window = 8}};
  KvCache cache(mesh_, options);
  const SequenceId sequence = cache.create();
  for (const std::int64_t tokens : {20, 4}) cache.plan({{sequence, tokens}});
  const TensorView keys = cache.planes(0)[0];
  const std::span<float> numbers(static_cast<float*>(keys.data),
                                 static_cast<std::size_t>(keys.elements()));
  std::iota(numbers.begin(), numbers.end(), 0.0f);
  const std::vector<float> before(numbers.begin(), numbers.end());
  EXPECT_THROW(cache.compact(std::vector<KeptTokens>{{sequence, 16, {20}}}), InvalidArgument);
  EXPECT_EQ(cache.length(sequence), 24);
  EXPECT_TRUE(std::ranges::equal(numbers, before));
}

CacheOptions with_states() {
  CacheOptions options = two_groups();
  options.groups = {{.layers = {0, 2}, .page_share = 0.5, .state_bytes = 64}};
  return options;
}

/// A layer's state of a sequence, on its one rank.
std::span<float> state_of(KvCache& cache, int layer, SequenceId sequence) {
  const TensorView view = cache.sequence_state(layer, sequence);
  return {static_cast<float*>(view.data),
          view.empty() ? 0 : static_cast<std::size_t>(view.shape[0])};
}

TEST_F(LayerGroups, HoldStatesOfSequences) {
  KvCache cache(mesh_, with_states());
  EXPECT_EQ(cache.group_options(1).state_bytes, 64);
  EXPECT_EQ(cache.planes(2)[0].shape[0], 3);
  const SequenceId first = cache.create();
  EXPECT_TRUE(state_of(cache, 0, first).empty());
  cache.plan({{first, 9}});
  EXPECT_EQ(cache.allocator(1).pages(first).size(), 1u);
  ASSERT_EQ(state_of(cache, 0, first).size(), 16u);
  std::ranges::fill(state_of(cache, 0, first), 1.0f);
  std::ranges::fill(state_of(cache, 2, first), 2.0f);
  const SequenceId fork = cache.fork(first);
  EXPECT_EQ(state_of(cache, 2, fork).data(), state_of(cache, 2, first).data());
  EXPECT_EQ(cache.pages_needed({{fork, 1}}, 1), 1);
  cache.plan({{fork, 1}});
  ASSERT_NE(state_of(cache, 2, fork).data(), state_of(cache, 2, first).data());
  std::ranges::fill(state_of(cache, 0, fork), 5.0f);
  EXPECT_EQ(state_of(cache, 0, first)[15], 1.0f);
  EXPECT_EQ(state_of(cache, 2, fork)[15], 2.0f);
  cache.compact(std::vector<KeptTokens>{{fork, 8, {9}}});
  EXPECT_EQ(cache.length(fork), 9);
  EXPECT_EQ(state_of(cache, 0, fork)[0], 5.0f);
  cache.truncate(fork, 0);
  EXPECT_TRUE(state_of(cache, 0, fork).empty());
  EXPECT_EQ(cache.allocator(1).free_pages(), 2);
}

TEST_F(LayerGroups, HoldStatesWithoutKeys) {
  KvCache cache(mesh_, with_states());
  const SequenceId sequence = cache.create();
  StepPlan plan = cache.plan({{sequence, 2}});
  std::vector<float> numbers(64);
  const TensorView row = tensor(numbers.data(), {2, 2, 8});
  EXPECT_THROW(plan.run(0, {row, row, row}, {row}), InvalidArgument);
  EXPECT_THROW(plan.append(2, row, row), InvalidArgument);
  EXPECT_THROW(plan.heads_of_output(0), InvalidArgument);
  EXPECT_THROW(plan.participation(0), InvalidArgument);
  EXPECT_THROW(cache.pool(0), InvalidArgument);
  EXPECT_THROW(cache.peer_pool(Rank{0}, 0), InvalidArgument);
  EXPECT_THROW(cache.write(0, sequence, std::vector<std::int64_t>{0}, row, row), InvalidArgument);
  EXPECT_THROW(cache.sequence_state(1, sequence), InvalidArgument);
  EXPECT_THROW(cache.sequence_state(3, sequence), InvalidArgument);
  EXPECT_THROW(cache.sequence_state(0, SequenceId()), UnknownSequence);

  for (const std::int64_t bytes : {-16, 4, 17}) {
    CacheOptions options = with_states();
    options.groups[0].state_bytes = bytes;
    EXPECT_THAT(error_of(options), testing::HasSubstr("state_bytes")) << bytes;
  }
  CacheOptions options = with_states();
  options.prefix.enabled = true;
  options.tiers.host_bytes = 1 << 20;
  EXPECT_THAT(error_of(options), testing::HasSubstr("tiers, of a cache with a state group"));
  options = two_groups();
  options.state_bytes = 16;
  EXPECT_THAT(error_of(options), testing::HasSubstr("state_bytes"));
}

/// A hybrid model, whose steps add their tokens to a state. Serves a prompt of 11 tokens, of which
/// the first 10 are always the same, in three steps, and expects to find `expected`
/// tokens with their state. Publishes it after the step that ends at 8, and at the end.
SequenceId serve(KvCache& cache, std::int32_t last, std::int64_t expected) {
  const std::vector<std::int32_t> tokens{3, 1, 4, 1, 5, 9, 2, 6, 5, 3, last};
  PrefixKey key = cache.make_prefix_key();
  key.append(tokens);
  const SequenceId sequence = cache.create_with_prefix(key);
  EXPECT_EQ(cache.length(sequence), expected);
  for (const std::int64_t end : {4, 8, 11}) {
    const std::int64_t begin = cache.length(sequence);
    if (end <= begin) continue;
    cache.plan({{sequence, end - begin}});
    const std::span<float> state = state_of(cache, 0, sequence);  // a copy of a published one
    const auto sum_to = [&](std::int64_t at) {
      return std::accumulate(tokens.begin(), tokens.begin() + at, 0.0f);
    };
    if (begin > 0 && !state.empty()) {
      EXPECT_EQ(state[15], sum_to(begin)) << begin << " tokens";
    }
    std::ranges::fill(state, sum_to(end));
    if (end == 8) cache.publish(sequence, key);
  }
  cache.publish(sequence, key);
  return sequence;
}

CacheOptions with_known_states() {
  CacheOptions options = with_states();
  options.pages_per_rank = 12;
  options.prefix.enabled = true;
  return options;
}

TEST_F(LayerGroups, FindAPrefixWithItsState) {
  KvCache cache(mesh_, with_known_states());
  const SequenceId first = serve(cache, 7, 0), second = serve(cache, 8, 8);
  EXPECT_EQ(cache.allocator(0).pages(first)[1], cache.allocator(0).pages(second)[1]);
  PrefixKey shorter = cache.make_prefix_key();
  shorter.append(std::vector<std::int32_t>{3, 1, 4, 1, 7});
  EXPECT_EQ(cache.match_prefix(shorter).tokens, 0) << "keys of 4 tokens, but no state of them";
  for (const SequenceId sequence : {first, second}) cache.erase(sequence);
  EXPECT_EQ(cache.length(serve(cache, 9, 8)), 11) << "after the last sequence, too";
  for (int group = 0; group < 2; ++group) cache.allocator(group).verify_integrity();
}

TEST(LayerGroupsOnRanks, KnownStatesMoveWithTheirPages) {
  run_on_threads(2,
                 [](Mesh& mesh) {
                   KvCache cache(mesh, with_known_states());
                   cache.erase(serve(cache, 7, 0));
                   for (PageRank rank{0}; rank.value < 2; ++rank.value) {
                     cache.drain(rank);
                     cache.erase(serve(cache, 8 + rank.value, 8));
                     cache.add_rank(rank);
                   }
                   cache.check_replicas();
                 },
                 {.threads = 1});
}

}  // namespace
}  // namespace kvmesh::test
