// Ranks that plan different steps: all of them throw, and the error names the rank and the field.
#include "runtime/step/plan_agreement.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "runtime/mesh/replica_check.hpp"
#include "tests/runtime/cache/cache_fixture.hpp"

namespace kvmesh::test {
namespace {

constexpr auto kInterval = static_cast<int>(PlanHistory::kInterval);

struct Plan {
  std::vector<BatchEntry> batch{{SequenceId(1, 1, 0), 1}, {SequenceId(1, 1, 1), 2, 1}};
  PlanOptions options{};
};

PlanHashes all_hashes(const Plan& plan, const PageAllocator& allocator) {
  return with_batch(hashes_of(plan.options), plan.batch, plan.options.q_positions,
                    allocator.digest());
}

// The error of a rank at the plan that ends an interval, whose first plan the last rank changes.
std::string told(Communicator& world, const std::function<void(Plan&)>& change) {
  const PageAllocator allocator({.ranks = world.size(), .pages_per_rank = 4, .page_size = 4});
  PlanHistory history;
  for (int i = 0; i < kInterval; ++i) {
    Plan plan;
    if (i == 0 && world.rank().value == world.size() - 1) change(plan);
    const PlanHashes next = all_hashes(plan, allocator);
    try {
      history.compare(world, next, [&] { check_replicas(allocator, world); });
    } catch (const DigestMismatch& error) {
      EXPECT_EQ(i, kInterval - 1);
      return error.what();
    }
    history.add(next);
  }
  return "";
}

void expect_told(const std::string& field, const std::function<void(Plan&)>& change) {
  SCOPED_TRACE(field);
  run_loopback(3, [&](Communicator& world) {
    const std::string said = told(world, change);
    if (field.empty()) {
      EXPECT_EQ(said, "");
    } else {
      EXPECT_NE(said.find(field + " of rank 2"), std::string::npos) << said;
    }
  });
}

MaskMod window(std::int32_t n) { return mods::sliding_window(n); }

ScoreMod slopes(std::vector<float> numbers) { return mods::alibi(Buffer<float>(numbers)); }

TEST(PlanAgreement, NamesTheDifferenceWithinAnInterval) {
  expect_told("", [](Plan&) {});
  expect_told("the batch", [](Plan& p) { p.batch.pop_back(); });
  expect_told("the batch", [](Plan& p) { std::swap(p.batch[0], p.batch[1]); });
  expect_told("the batch", [](Plan& p) { p.batch[0].append_tokens = 2; });
  expect_told("the batch", [](Plan& p) { p.batch[1].query_tokens = 2; });
  expect_told("scale", [](Plan& p) { p.options.scale = 0.5f; });
  expect_told("scatter", [](Plan& p) { p.options.scatter = Scatter::kHeads; });
  expect_told("strategy", [](Plan& p) { p.options.strategy = CombineStrategy::kAllToAll; });
  expect_told("way", [](Plan& p) { p.options.way = WayKind::kHost; });
  expect_told("travels_as", [](Plan& p) { p.options.travels_as = Dtype::kBFloat16; });
  expect_told("fixed_split_tokens", [](Plan& p) { p.options.fixed_split_tokens = 1024; });
  expect_told("shares_prefixes", [](Plan& p) { p.options.shares_prefixes = false; });
  expect_told("least_saved_tokens", [](Plan& p) { p.options.least_saved_tokens = 0; });
  expect_told("the limits", [](Plan& p) { p.options.limits = StepLimits{.sequences = 2}; });
  expect_told("q_positions", [](Plan& p) { p.options.q_positions = {0, 1, 2}; });
  expect_told("the mask mod", [](Plan& p) { p.options.mask = {}; });
  expect_told("the mask mod", [](Plan& p) { p.options.mask = window(8); });
  expect_told("the score mod", [](Plan& p) { p.options.score = mods::soft_cap(30); });
  expect_told("the mask mod", [](Plan& p) { p.options.kinds = {{.layers = {1}}}; });
  expect_told("the score mod", [](Plan& p) { p.options.score = slopes({0.5f, 0.25f}); });
}

TEST(PlanAgreement, ComparesEveryLimit) {
  const auto hash = [](const StepLimits& limits) { return hashes_of({.limits = limits}).fields; };
  const StepLimits base{.sequences = 2, .query_tokens = 1, .pages = 4, .shares_prefixes = false};
  EXPECT_EQ(hash(base), hash(base));
  const auto expect_other = [&](const auto& change) {
    StepLimits other = base;
    change(other);
    EXPECT_NE(hash(base), hash(other));
  };
  expect_other([](StepLimits& it) { it.sequences = 3; });
  expect_other([](StepLimits& it) { it.query_tokens = 2; });
  expect_other([](StepLimits& it) { it.pages = 5; });
  expect_other([](StepLimits& it) { it.shares_prefixes = true; });
}

TEST(PlanAgreement, ComparesGraphsNotObjects) {
  const auto hash = [](const MaskMod& mask, const ScoreMod& score,
                       Contents contents = Contents::kLeftOut) {
    return hashes_of({.mask = mask, .score = score}, contents).fields;
  };
  EXPECT_EQ(hash(window(8), slopes({0.5f, 0.25f})), hash(window(8), slopes({0.5f, 0.25f})));
  EXPECT_NE(hash(window(8), slopes({0.5f, 0.25f})), hash(window(8), slopes({0.5f, 0.25f, 1.0f})));
  EXPECT_EQ(hash(window(8), slopes({0.5f, 0.25f})), hash(window(8), slopes({0.5f, 0.26f})));
  EXPECT_NE(hash(window(8), slopes({0.5f, 0.25f}), Contents::kHashed),
            hash(window(8), slopes({0.5f, 0.26f}), Contents::kHashed));
  EXPECT_EQ(kHashedContents == Contents::kHashed, kInterval == 1) << "both in debug builds";
}

TEST(PlanAgreement, ComparesBlockMasks) {
  const BlockMaskShape shape{.q_len = 8, .kv_len = 8, .q_block = 4, .kv_block = 4};
  const BlockMask causal = BlockMask::create(mods::causal(), shape);
  const BlockMask full = BlockMask::create({}, shape);
  EXPECT_EQ(hashes_of({.block_mask = &causal}).fields, hashes_of({.block_mask = &causal}).fields);
  EXPECT_NE(hashes_of({.block_mask = &causal}).fields, hashes_of({.block_mask = &full}).fields);

  // A mask of the same shape and sparsity, with another list.
  const auto listing = [&](std::int32_t block) {
    const BlockRow rows[] = {{.partial = {block}, .full = {}}, {.partial = {0}, .full = {1}}};
    return BlockMask::from_lists(shape, rows);
  };
  const BlockMask first = listing(0), second = listing(1);
  const auto hash = [](const BlockMask& mask, Contents contents) {
    return hashes_of({.block_mask = &mask}, contents).fields;
  };
  EXPECT_EQ(hash(first, Contents::kLeftOut), hash(second, Contents::kLeftOut));
  EXPECT_NE(hash(first, Contents::kHashed), hash(second, Contents::kHashed));
  const auto listing_full = [&](std::int32_t block) {
    const BlockRow rows[] = {{.partial = {}, .full = {block}}, {.partial = {0}, .full = {1}}};
    return BlockMask::from_lists(shape, rows);
  };
  EXPECT_NE(hash(listing_full(0), Contents::kHashed), hash(listing_full(1), Contents::kHashed));

  // The same lists for queries at other positions, where partial blocks are masked otherwise.
  BlockMaskShape later = shape;
  later.q_start = {4};
  const BlockRow rows[] = {{.partial = {0}, .full = {}}, {.partial = {0}, .full = {}}};
  const BlockMask at_start = BlockMask::from_lists(shape, rows, mods::causal());
  const BlockMask at_four = BlockMask::from_lists(later, rows, mods::causal());
  EXPECT_NE(hash(at_start, Contents::kLeftOut), hash(at_four, Contents::kLeftOut));
}

TEST(PlanAgreement, ComparesKindsOfLayers) {
  const auto hash = [](const LayerKind& kind) { return hashes_of({.kinds = {kind}}).fields; };
  EXPECT_EQ(hash({.layers = {0, 2}}), hash({.layers = {0, 2}}));
  EXPECT_NE(hash({.layers = {0, 2}}), hash({.layers = {0, 1}}));
  EXPECT_NE(hash({.layers = {0}}), hash({.layers = {0}, .mask = window(8)}));
  EXPECT_NE(hash({.layers = {0}}), hash({.layers = {0}, .score = mods::soft_cap(30)}));
  EXPECT_NE(hash({.layers = {0}, .scale = 0.5f}), hash({.layers = {0}, .scale = 0.25f}));
  EXPECT_NE(hash({.layers = {0}, .scale = 0.5f}), hash({.layers = {0}}));
}

// ---- Through a cache. Every sequence is short and lives on one rank ----

// Plans on three ranks until a rank's `differ` is found; returns the error of a rank.
std::string told_by_cache(Mesh& mesh, const std::function<void(KvCache&, PlanOptions&)>& differ) {
  KvCache cache(mesh, small_cache_options());
  const SequenceId sequence = cache.create();
  try {
    for (int i = 0; i < kInterval + 1; ++i) {
      PlanOptions options;
      if (i == 1 % kInterval && mesh.rank().value == 2) differ(cache, options);
      cache.truncate(sequence, 0);
      static_cast<void>(cache.plan({{sequence, 1}}, options));
    }
  } catch (const DigestMismatch& error) {
    return error.what();
  }
  return "";
}

TEST(PlanAgreement, CacheComparesItsPlansWithoutACombine) {
  run_on_threads(3, [](Mesh& mesh) {
    EXPECT_EQ(told_by_cache(mesh, [](auto&, auto&) {}), "");
    std::string said = told_by_cache(mesh, [](auto&, auto& o) { o.mask = window(2); });
    EXPECT_NE(said.find("the mask mod of rank 2"), std::string::npos) << said;
    said = told_by_cache(mesh, [](KvCache& cache, auto&) { static_cast<void>(cache.create()); });
    EXPECT_NE(said.find("operation"), std::string::npos) << said;
  });
}

class CombineAgreement : public testing::TestWithParam<bool> {};

// The step that differs is found by its own combine: rows of both ranks meet there.
TEST_P(CombineAgreement, NamesTheRankAndTheGroup) {
  if (kInterval == 1) GTEST_SKIP() << "debug builds find it in the plan";
  run_on_threads(2, [](Mesh& mesh) {
    CacheOptions options = small_cache_options();
    options.home_threshold_tokens = 0;
    options.reproducible = GetParam();
    KvCache cache(mesh, options);
    const SequenceId sequence = cache.create();
    const bool differs = mesh.rank().value == 1;
    StepPlan plan = cache.plan({{sequence, 8, 1}}, {.scale = differs ? 0.5f : 0.25f});
    std::vector<float> q(4 * 8), k(8 * 2 * 8), o(4 * 6);
    std::string said;
    try {
      plan.run(
          0,
          {tensor(q.data(), {1, 4, 8}), tensor(k.data(), {8, 2, 8}), tensor(k.data(), {8, 2, 6})},
          {tensor(o.data(), {1, 4, 6}), {}});
    } catch (const DigestMismatch& error) {
      said = error.what();
    }
    EXPECT_NE(said.find("combine: "), std::string::npos) << said;
    EXPECT_NE(said.find("differ in: scale"), std::string::npos) << said;
  });
}
INSTANTIATE_TEST_SUITE_P(Reproducible, CombineAgreement, testing::Bool());

}  // namespace
}  // namespace kvmesh::test
