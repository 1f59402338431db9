// The CPU evaluator against the scalar definition and against plain C++, at every width.
#include "kernels/cpu/mods/mod_evaluator.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "tests/kernels/mods/mods_support.hpp"
#include "tests/support/instruction_sets.hpp"

namespace kvmesh {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
/// Elements behind the tile, which must not change.
constexpr int kGuard = 16;

bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

/// Highway's functions are right to 4 units in the last place; subnormals may be flushed.
bool close(float value, double expected) {
  if (std::isnan(expected)) return std::isnan(value);
  const auto nearest = static_cast<float>(expected);
  if (value == nearest) return true;
  return std::abs(value - expected) <= 0x1p-20 * std::abs(expected) + 1.2e-38;
}

struct Tile {
  std::vector<float> scores{};
  std::vector<std::int32_t> kv{};
  std::int32_t b = 0, h = 0, q = 0;
};

Tile random_tile(test::Random& random, int count) {
  Tile tile{.b = random.integer(0, 3), .h = random.integer(0, 7), .q = random.integer(0, 60)};
  const std::int32_t first = random.integer(0, 60);
  const bool consecutive = random.chance(0.5);
  for (int i = 0; i < count; ++i) {
    tile.scores.push_back(random.chance(0.2) ? random.wild_real() : random.real(-4.0f, 4.0f));
    tile.kv.push_back(consecutive ? first + i : random.integer(0, 60));
  }
  return tile;
}

std::vector<float> run_score(ModEvaluator& evaluator, const Tile& tile) {
  const int count = static_cast<int>(tile.kv.size());
  std::vector<float> scores = tile.scores;
  scores.resize(tile.kv.size() + kGuard, 7.5f);
  evaluator.score(scores.data(), tile.kv.data(), count, tile.b, tile.h, tile.q);
  for (int i = 0; i < kGuard; ++i) EXPECT_EQ(scores[tile.kv.size() + std::size_t(i)], 7.5f);
  scores.resize(tile.kv.size());
  return scores;
}

std::vector<std::uint8_t> run_mask(ModEvaluator& evaluator, const Tile& tile) {
  const int count = static_cast<int>(tile.kv.size());
  std::vector<std::uint8_t> visible(tile.kv.size() + kGuard, 9);
  evaluator.mask(visible.data(), tile.kv.data(), count, tile.b, tile.h, tile.q);
  for (int i = 0; i < kGuard; ++i) EXPECT_EQ(visible[tile.kv.size() + std::size_t(i)], 9);
  visible.resize(tile.kv.size());
  return visible;
}

class ModEvaluatorTest : public test::OnInstructionSet {};

INSTANTIATE_TEST_SUITE_P(EveryTarget, ModEvaluatorTest, testing::ValuesIn(test::instruction_sets()),
                         test::instruction_set_name);

using Lambda = std::function<Expr(Expr, Expr, Expr, Expr, Expr)>;
using Plain = std::function<double(float, std::int32_t, std::int32_t, std::int32_t, std::int32_t)>;

struct Case {
  const char* name;
  Lambda traced;
  Plain plain;
};

template <class F>
Case both(const char* name, F body) {
  return {name, body, body};
}

/// Every operation on floats and on ints; the integers are kept where plain C++ is defined.
std::vector<Case> cases() {
  return {
      both("negate", [](auto s, auto, auto, auto, auto) { return -s; }),
      both("abs", [](auto s, auto, auto, auto, auto) { return abs(s); }),
      both("exp", [](auto s, auto, auto, auto, auto) { return exp(s); }),
      both("log", [](auto s, auto, auto, auto, auto) { return log(s); }),
      both("sqrt", [](auto s, auto, auto, auto, auto) { return sqrt(s); }),
      both("tanh", [](auto s, auto, auto, auto, auto) { return tanh(s); }),
      both("to_int", [](auto s, auto, auto, auto, auto) { return to_int(s); }),
      both("add", [](auto s, auto, auto, auto, auto kv) { return s + kv; }),
      both("subtract", [](auto s, auto, auto, auto, auto kv) { return kv - s; }),
      both("multiply", [](auto s, auto, auto, auto, auto kv) { return s * kv; }),
      both("divide", [](auto s, auto, auto, auto, auto) { return 3.0f / s; }),
      both("min", [](auto s, auto, auto, auto, auto) { return min(s, 1.0f); }),
      both("max", [](auto s, auto, auto, auto, auto) { return max(s, -1.0f); }),
      both("less", [](auto s, auto, auto, auto, auto) { return where(s < 1, 1.0f, 2.0f); }),
      both("less_equal", [](auto s, auto, auto, auto, auto) { return where(s <= 1, 1.0f, 2.0f); }),
      both("greater", [](auto s, auto, auto, auto, auto) { return where(s > 1, 1.0f, 2.0f); }),
      both("greater_equal",
           [](auto s, auto, auto, auto, auto) { return where(s >= 1, 1.0f, 2.0f); }),
      both("equal", [](auto s, auto, auto, auto, auto) { return where(s == 1, 1.0f, 2.0f); }),
      both("not_equal", [](auto s, auto, auto, auto, auto) { return where(s != 1, 1.0f, 2.0f); }),
      both("where", [](auto s, auto, auto, auto q, auto kv) { return where(q < kv, s, q); }),
      both("int negate", [](auto, auto, auto, auto, auto kv) { return -kv; }),
      both("int abs", [](auto, auto, auto, auto q, auto kv) { return abs(q - kv); }),
      both("int multiply", [](auto, auto, auto h, auto q, auto kv) { return (q - kv) * (h - 3); }),
      both("int divide", [](auto, auto, auto, auto q, auto kv) { return (q - kv) / 7; }),
      both("int divide kv", [](auto, auto, auto, auto q, auto kv) { return -q / (kv + 1); }),
      both("int modulo", [](auto, auto, auto, auto q, auto kv) { return (q - kv) % 7; }),
      both("int min", [](auto, auto b, auto, auto q, auto kv) { return min(q - kv, b); }),
      both("int max", [](auto, auto b, auto, auto q, auto kv) { return max(q - kv, b); }),
      both("int equal", [](auto, auto, auto, auto q, auto kv) { return where(q == kv, 1, 2); }),
      both("int compare",
           [](auto, auto b, auto h, auto q, auto kv) {
             return where(q < kv, 1, 0) + where(q <= kv, 2, 0) + where(q > kv, 4, 0) +
                    where(q >= kv, 8, 0) + where(q != kv, 16, 0) + where(b < h, 32, 0);
           }),
      both("bool",
           [](auto, auto b, auto h, auto q, auto kv) {
             return to_float(q < kv && kv < 30) + to_float(!(q < kv) || h < 3) * 2 +
                    to_int((q == kv) & (b < 2)) * 4 + to_int((q < 30) | (kv < 30)) * 8 +
                    (kv < 9) * 16;
           }),
      both("uniform", [](auto, auto b, auto h, auto q, auto) { return b * 100 + h * 10 + q; }),
      both("constant", [](auto, auto, auto, auto, auto) { return 2.5f; }),
  };
}

TEST_P(ModEvaluatorTest, EveryOperationAtEveryWidth) {
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  for (const Case& c : cases()) {
    const ScoreMod mod(
        [&](auto s, auto b, auto h, auto q, auto kv) { return c.traced(s, b, h, q, kv); });
    ModEvaluator evaluator(mod.graph());
    for (int count = 1; count <= kModTile; ++count) {
      const Tile tile = random_tile(random, count);
      const std::vector<float> scores = run_score(evaluator, tile);
      for (std::size_t i = 0; i < tile.kv.size(); ++i) {
        const double expected = c.plain(tile.scores[i], tile.b, tile.h, tile.q, tile.kv[i]);
        ASSERT_TRUE(close(scores[i], expected))
            << c.name << " of score " << tile.scores[i] << ", kv " << tile.kv[i] << " gave "
            << scores[i] << ", expected " << expected;
      }
    }
  }
}

TEST_P(ModEvaluatorTest, FunctionsAtTheirEdges) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> values{0.0f,  -0.0f,  infinity, -infinity, kNan,    1e-40f,  -1e-40f,
                                  88.7f, 88.8f,  104.5f,   -87.5f,    -103.5f, -110.0f, 9.9f,
                                  10.1f, -10.1f, 1e-4f,    3e38f,     -3e38f,  -1.0f,   0.5f};
  const auto check = [&](auto function) {
    const ScoreMod mod([&](auto s, auto, auto, auto, auto) { return function(s); });
    ModEvaluator evaluator(mod.graph());
    const Tile tile{values, std::vector<std::int32_t>(values.size(), 0)};
    const std::vector<float> results = run_score(evaluator, tile);
    for (std::size_t i = 0; i < values.size(); ++i) {
      EXPECT_TRUE(close(results[i], function(double{values[i]})))
          << "of " << values[i] << " gave " << results[i];
    }
  };
  check([](auto x) { return exp(x); });
  check([](auto x) { return log(abs(x) + 0.0f); });
  check([](auto x) { return sqrt(x); });
  check([](auto x) { return tanh(x); });
  check([](auto x) { return to_int(x); });
}

TEST_P(ModEvaluatorTest, IntegersWrapAndDivideAsDocumented) {
  constexpr std::int32_t kLowest = std::numeric_limits<std::int32_t>::min();
  const std::vector<std::int32_t> values{
      0, 1,  -1,    kLowest,    std::numeric_limits<std::int32_t>::max(),
      7, -7, 65536, 2147483600, -2147483600};
  for (std::int32_t q : values) {
    const auto check = [&](auto operation, auto expected) {
      const ScoreMod mod([&](auto, auto, auto, auto row, auto kv) {
        // The halves apart: a float32 holds 16 bits of each exactly.
        const auto result = operation(row, kv);
        return where(row == row, to_float(result % 65536) * 1.0f, 0.0f);
      });
      ModEvaluator evaluator(mod.graph());
      Tile tile{std::vector<float>(values.size()), values};
      tile.q = q;
      const std::vector<float> results = run_score(evaluator, tile);
      for (std::size_t i = 0; i < values.size(); ++i) {
        const std::int32_t exact = expected(q, values[i]);
        EXPECT_EQ(results[i], static_cast<float>(exact % 65536)) << q << " and " << values[i];
      }
    };
    const auto wrap = [](std::int64_t value) { return static_cast<std::int32_t>(value); };
    using Wide = std::int64_t;
    check([](auto a, auto b) { return a + b; }, [&](Wide a, Wide b) { return wrap(a + b); });
    check([](auto a, auto b) { return a - b; }, [&](Wide a, Wide b) { return wrap(a - b); });
    check([](auto a, auto b) { return a * b; }, [&](Wide a, Wide b) { return wrap(a * b); });
    check([](auto a, auto b) { return a / b; },
          [&](Wide a, Wide b) { return b == 0 ? 0 : wrap(a / b); });
    check([](auto a, auto b) { return a % b; },
          [&](Wide a, Wide b) { return b == 0 ? 0 : wrap(a % b); });
    check([](auto a, auto b) { return abs(a) + 0 * b; },
          [&](Wide a, Wide) { return wrap(std::abs(a)); });
  }
}

TEST_P(ModEvaluatorTest, RandomScoreGraphsMatchTheDefinitionBitForBit) {
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  for (int round = 0; round < 1500; ++round) {
    const ScoreMod mod = test::random_score(random);
    ModEvaluator evaluator(mod.graph());
    const Tile tile = random_tile(random, random.integer(1, 2 * kModTile));
    const std::vector<float> scores = run_score(evaluator, tile);
    for (std::size_t i = 0; i < tile.kv.size(); ++i) {
      const float expected = mod(tile.scores[i], tile.b, tile.h, tile.q, tile.kv[i]);
      ASSERT_TRUE(same(scores[i], expected))
          << "round " << round << ": " << scores[i] << ", expected " << expected << " for score "
          << tile.scores[i] << ", kv " << tile.kv[i] << "\n"
          << mod.to_string();
    }
  }
}

TEST_P(ModEvaluatorTest, RandomMaskGraphsMatchTheDefinition) {
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  for (int round = 0; round < 1500; ++round) {
    const MaskMod mod = test::random_mask(random, true);
    ModEvaluator evaluator(mod.graph());
    const Tile tile = random_tile(random, random.integer(1, 2 * kModTile));
    const std::vector<std::uint8_t> visible = run_mask(evaluator, tile);
    for (std::size_t i = 0; i < tile.kv.size(); ++i) {
      ASSERT_EQ(visible[i], mod(tile.b, tile.h, tile.q, tile.kv[i]) ? 1 : 0)
          << "round " << round << ", kv " << tile.kv[i] << "\n"
          << mod.to_string();
    }
  }
}

TEST_P(ModEvaluatorTest, SeesABufferThatChanged) {
  Buffer<float> slopes({1.0f, 2.0f});
  Buffer<bool> keep({true, false, true, true});
  const ScoreMod score([&](auto s, auto, auto h, auto, auto) { return s * slopes[h]; });
  const MaskMod mask([&](auto, auto, auto, auto kv) { return keep[kv]; });
  ModEvaluator scores(score.graph());
  ModEvaluator visible(mask.graph());
  const Tile tile{{1.0f, 1.0f, 1.0f, 1.0f}, {0, 1, 2, 3}, 0, 1, 0};
  EXPECT_EQ(run_score(scores, tile), (std::vector<float>{2.0f, 2.0f, 2.0f, 2.0f}));
  EXPECT_EQ(run_mask(visible, tile), (std::vector<std::uint8_t>{1, 0, 1, 1}));
  slopes.set(1, 5.0f);
  keep.set(3, false);
  EXPECT_EQ(run_score(scores, tile), (std::vector<float>{5.0f, 5.0f, 5.0f, 5.0f}));
  EXPECT_EQ(run_mask(visible, tile), (std::vector<std::uint8_t>{1, 0, 1, 0}));
}

TEST_P(ModEvaluatorTest, GuardedLoadsNeverFault) {
  const Buffer<float> bias({1.0f, 2.0f, 3.0f});
  const ScoreMod mod([&](auto s, auto, auto, auto q, auto kv) {
    return s + where(kv < 3, bias[kv], 0.0f) + where(q - kv >= 0, bias[(q - kv) * 1000000], 0.0f);
  });
  ModEvaluator evaluator(mod.graph());
  Tile tile{std::vector<float>(64, 0.0f), {}};
  for (std::int32_t kv = 0; kv < 64; ++kv) tile.kv.push_back(kv * 30000000);
  const std::vector<float> scores = run_score(evaluator, tile);
  EXPECT_EQ(scores[0], 1.0f + 1.0f);
  for (std::size_t i = 1; i < 64; ++i) EXPECT_EQ(scores[i], 0.0f);
}

}  // namespace
}  // namespace kvmesh
