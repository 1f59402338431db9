// classify_tile must be exact.
#include "kernels/cpu/plan/classify.hpp"

#include <gtest/gtest.h>

#include "tests/kernels/mods/mods_support.hpp"

namespace kvmesh {
namespace {

TileClass brute_force(const MaskMod& mask, std::int32_t b, std::int32_t h, PositionRange q,
                      PositionRange kv) {
  bool visible = false;
  bool hidden = false;
  for (std::int32_t i = q.begin; i < q.end; ++i) {
    for (std::int32_t j = kv.begin; j < kv.end; ++j) (mask(b, h, i, j) ? visible : hidden) = true;
  }
  return visible ? (hidden ? TileClass::kPartial : TileClass::kFull) : TileClass::kEmpty;
}

TEST(Classify, IsExactOnRandomGraphs) {
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  int partial = 0;
  for (int round = 0; round < 5000; ++round) {
    const MaskMod mask = test::random_mask(random, true);
    ModEvaluator evaluator(mask.graph());
    const std::int32_t q = random.integer(0, 40);
    const std::int32_t kv = random.integer(0, 40);
    const PositionRange q_range{q, q + random.integer(1, 6)};
    const PositionRange kv_range{kv, kv + random.integer(1, 70)};
    const TileClass expected = brute_force(mask, 1, 2, q_range, kv_range);
    partial += expected == TileClass::kPartial;
    ASSERT_EQ(classify_tile(mask.graph(), evaluator, 1, 2, q_range, kv_range), expected)
        << "round " << round << "\n"
        << mask.to_string();
    std::vector<std::int32_t> positions;
    for (std::int32_t i = q_range.end; i-- > q_range.begin;) positions.push_back(i);
    ASSERT_EQ(classify_tile(mask.graph(), evaluator, 1, 2, positions, kv_range), expected);
  }
  EXPECT_GT(partial, 300) << "the test would prove little";
}

TEST(Classify, QueriesAtScatteredPositions) {
  const MaskMod mask([](auto, auto, auto q, auto kv) { return q == 10 || q == 30 || kv == 99; });
  ModEvaluator evaluator(mask.graph());
  const std::vector<std::int32_t> seen{30, 10};
  const std::vector<std::int32_t> one_of_three{30, 20, 10};
  const std::vector<std::int32_t> none{11, 29};
  EXPECT_EQ(classify_tile(mask.graph(), evaluator, 0, 0, seen, {0, 16}), TileClass::kFull);
  EXPECT_EQ(classify_tile(mask.graph(), evaluator, 0, 0, one_of_three, {0, 16}),
            TileClass::kPartial);
  EXPECT_EQ(classify_tile(mask.graph(), evaluator, 0, 0, none, {0, 16}), TileClass::kEmpty);
  EXPECT_EQ(classify_tile(mask.graph(), evaluator, 0, 0, none, {0, 128}), TileClass::kPartial);
}

}  // namespace
}  // namespace kvmesh
