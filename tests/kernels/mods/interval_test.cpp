// Intervals must be sound, and prove the usual cases.
#include "kernels/mods/interval.hpp"

#include <gtest/gtest.h>

#include "tests/kernels/mods/mods_support.hpp"

namespace kvmesh {
namespace {

/// The value that the mask has for all pairs; nothing if it has both.
std::optional<bool> value_of_all(const MaskMod& mask, std::int32_t b, std::int32_t h,
                                 PositionRange q, PositionRange kv) {
  const bool first = mask(b, h, q.begin, kv.begin);
  for (std::int32_t i = q.begin; i < q.end; ++i) {
    for (std::int32_t j = kv.begin; j < kv.end; ++j) {
      if (mask(b, h, i, j) != first) return std::nullopt;
    }
  }
  return first;
}

std::optional<bool> by_interval(const MaskMod& mask, PositionRange q, PositionRange kv) {
  return proved_value(mask.graph(), 0, 0, q, kv);
}

TEST(Interval, ProvesTheUsualMasks) {
  const MaskMod causal = mods::causal();
  EXPECT_EQ(by_interval(causal, {64, 128}, {0, 65}), true);
  EXPECT_EQ(by_interval(causal, {64, 128}, {128, 192}), false);
  EXPECT_EQ(by_interval(causal, {64, 128}, {64, 128}), std::nullopt);
  const MaskMod window = mods::sliding_window(64);
  EXPECT_EQ(by_interval(window, {200, 201}, {137, 201}), true);
  EXPECT_EQ(by_interval(window, {200, 201}, {136, 201}), std::nullopt);
  EXPECT_EQ(by_interval(window, {200, 264}, {0, 137}), false);
  EXPECT_EQ(by_interval(mods::no_mask(), {0, 9}, {0, 9}), true);
  EXPECT_EQ(by_interval(!mods::no_mask(), {0, 9}, {0, 9}), false);
  EXPECT_EQ(by_interval(mods::prefix_lm(100), {0, 10}, {32, 64}), true);
}

TEST(Interval, ReadsShortSlicesOfBuffers) {
  std::vector<std::int32_t> ids(4000);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = i < 100 ? 0 : 1;
  Buffer<std::int32_t> doc(ids);
  const MaskMod mask = mods::documents(doc);
  EXPECT_EQ(by_interval(mask, {0, 64}, {0, 64}), true);
  EXPECT_EQ(by_interval(mask, {0, 64}, {128, 192}), false);
  EXPECT_EQ(by_interval(mask, {64, 128}, {128, 192}), std::nullopt);
  EXPECT_EQ(by_interval(mask, {100, 3000}, {128, 192}), std::nullopt) << "too long to search";
  doc.set(20, 1);
  EXPECT_EQ(by_interval(mask, {0, 64}, {0, 64}), std::nullopt) << "the buffer has changed";
}

// inf - inf is NaN, for which no comparison holds, in the middle of an apparent range.
TEST(Interval, HandlesInfinity) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const Buffer<float> times({0.0f, kInfinity, 1.0f, kInfinity});
  const MaskMod differences(
      [times](auto, auto, auto q, auto kv) { return max(times[q] - times[kv], 0.0f) >= 0.0f; });
  EXPECT_EQ(by_interval(differences, {0, 4}, {0, 4}), std::nullopt);
  EXPECT_EQ(by_interval(differences, {0, 1}, {0, 1}), true);
  const MaskMod products([times](auto, auto, auto q, auto kv) {
    return max(to_float(q - 1) * times[kv], 0.0f) >= 0.0f;
  });
  EXPECT_EQ(by_interval(products, {0, 3}, {1, 2}), std::nullopt);
}

/// A wrong proof would drop keys, so every proof about a random graph is checked.
TEST(Interval, IsSoundOnRandomGraphs) {
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  int proved = 0;
  for (int round = 0; round < 20000; ++round) {
    const MaskMod mask = test::random_mask(random, false);
    const std::int32_t q = random.integer(0, 40);
    const std::int32_t kv = random.integer(0, 40);
    const PositionRange q_range{q, q + random.integer(1, 6)};
    const PositionRange kv_range{kv, kv + random.integer(1, 12)};
    const std::int32_t b = random.integer(0, 2);
    const std::int32_t h = random.integer(0, 4);
    const auto result = proved_value(mask.graph(), b, h, q_range, kv_range);
    if (!result) continue;
    ++proved;
    ASSERT_EQ(result, value_of_all(mask, b, h, q_range, kv_range))
        << "round " << round << ", q " << q_range.begin << ".." << q_range.end << ", kv "
        << kv_range.begin << ".." << kv_range.end << ", b " << b << ", h " << h << "\n"
        << mask.to_string();
  }
  EXPECT_GT(proved, 2000) << "the test would prove little";
}

}  // namespace
}  // namespace kvmesh
