// Attention of long chunks over float8 pages by tensor cores: the shapes of tiles, kinds of queries
// and scales, and NaN where no row may see it.
#include <fmt/format.h>

#include <cmath>

#include "tests/gpu/float8_case.hpp"

namespace kvmesh::test {
namespace {

class AttendFloat8Chunks : public testing::TestWithParam<Float8Cut> {
 protected:
  static CaseSpec spec(ScaleKind scales) {
    const auto [shape, q_len] = GetParam();
    return float8_case(shape, scales,
                       {{.q_len = q_len, .kv_len = q_len},
                        {.q_len = 1, .kv_len = 333},
                        {.q_len = q_len, .kv_len = q_len + 401},
                        {.q_len = 1, .kv_len = 0},
                        {.q_len = q_len, .kv_len = 256}});
  }
};

TEST_P(AttendFloat8Chunks, MatchFloat64) {
  for (const ScaleKind scales : kEachScales) {
    AttentionCase c(spec(scales));
    EXPECT_TRUE(c.matches(c.run())) << name(scales);
  }
}

// Float16 queries are copied as bfloat16 ones are; the mask leaves the scale to the exponent.
TEST_P(AttendFloat8Chunks, UnderAMaskMatchFloat64) {
  for (const ScaleKind scales : kEachScales) {
    CaseSpec masked = spec(scales);
    masked.q_dtype = Dtype::kFloat16;
    masked.options.mask = mods::causal();
    AttentionCase c(masked);
    EXPECT_TRUE(c.matches(c.run())) << name(scales);
  }
}

TEST_P(AttendFloat8Chunks, WithAScoreModMatchFloat64) {
  for (const ScaleKind scales : kEachScales) {
    CaseSpec modified = spec(scales);
    modified.q_dtype = Dtype::kFloat32;
    modified.options.mask = mods::causal();
    modified.options.score = mods::alibi(modified.shape.q_heads);
    AttentionCase c(modified);
    EXPECT_TRUE(c.matches(c.run())) << name(scales);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kernels, AttendFloat8Chunks,
    testing::Values(Float8Cut{{8, 2, 64, 64, 16}, 100}, Float8Cut{{8, 2, 64, 64, 64}, 16},
                    Float8Cut{{8, 2, 128, 128, 16}, 13}, Float8Cut{{8, 2, 128, 128, 8}, 90},
                    Float8Cut{{8, 2, 128, 128, 16}, 150}, Float8Cut{{8, 2, 128, 128, 128}, 70},
                    Float8Cut{{24, 1, 128, 128, 64}, 20}, Float8Cut{{8, 2, 64, 128, 16}, 60},
                    Float8Cut{{4, 1, 192, 128, 16}, 70}, Float8Cut{{4, 1, 192, 128, 64}, 12},
                    Float8Cut{{4, 1, 192, 192, 32}, 60}, Float8Cut{{4, 2, 256, 256, 16}, 60},
                    Float8Cut{{8, 1, 256, 256, 64}, 80}, Float8Cut{{4, 1, 256, 64, 16}, 90},
                    Float8Cut{{4, 1, 64, 256, 8}, 40}),
    name_of_float8_cut);

// Without scales: elements count as they are.
TEST(AttendFloat8Chunk, WithUnitScalesMatchesFloat64) {
  CaseSpec spec =
      float8_case({8, 2, 128, 128, 16}, ScaleKind::kPerTensor, {{.q_len = 60, .kv_len = 700}});
  spec.scales.k = spec.scales.v = 1;
  spec.options.mask = mods::causal();
  AttentionCase c(spec);
  EXPECT_TRUE(c.matches(c.run()));
}

// Queries that do not begin at multiples of 16 bytes, and rows of outputs with gaps.
TEST(AttendFloat8Chunk, UnalignedTensorsMatchFloat64) {
  for (const Dtype q : {Dtype::kBFloat16, Dtype::kFloat32}) {
    CaseSpec spec = float8_case({8, 2, 128, 128, 16}, kRowScales, {{.q_len = 60, .kv_len = 300}});
    spec.q_dtype = q;
    spec.q = {.gap = 1};
    spec.o = {.gap = 1};
    AttentionCase c(spec);
    EXPECT_TRUE(c.matches(c.run())) << name(q);
  }
}

TEST(AttendFloat8Chunk, WithSinksMatchesFloat64) {
  for (const ScaleKind scales : kEachScales) {
    CaseSpec spec = float8_case({4, 2, 128, 128, 16}, scales,
                                {{.q_len = 100, .kv_len = 500}, {.q_len = 1, .kv_len = 40}});
    spec.sinks = {1.5f, -2.0f, 30.0f, 0.0f};
    spec.options.mask = mods::sliding_window(150);
    AttentionCase c(spec);
    EXPECT_TRUE(c.matches(c.run())) << name(scales);
  }
}

// Every head of a group has a mask of its own. Of more than 128 dims few rows are computed at once.
TEST(AttendFloat8Chunk, UnderAMaskOfEachHead) {
  for (const int dim : {128, 256}) {
    CaseSpec spec = float8_case({8, 2, dim, dim, 16}, kRowScales, {{.q_len = 50, .kv_len = 700}});
    spec.options.mask = [](auto, auto h, auto q, auto kv) { return (q + h + kv) % 3 == 0; };
    AttentionCase c(spec);
    EXPECT_TRUE(c.matches(c.run())) << dim;
  }
}

// Many pieces for each thread block, and pieces that are merged.
TEST(AttendFloat8Chunk, LongChunksAndSplitsMatchFloat64) {
  for (const ScaleKind scales : kEachScales) {
    CaseSpec spec = float8_case({8, 8, 64, 64, 16}, scales,
                                {{.q_len = 700, .kv_len = 1500}, {.q_len = 300, .kv_len = 300}});
    spec.options.mask = mods::causal();
    AttentionCase whole(spec);
    EXPECT_TRUE(whole.matches(whole.run())) << name(scales);
    spec.shape = {8, 2, 128, 128, 16};
    spec.sequences = {{.q_len = 40, .kv_len = 20'003}, {.q_len = 33, .kv_len = 700}};
    AttentionCase split(spec);
    EXPECT_TRUE(split.matches(split.run())) << name(scales);
  }
}

// Scores that later keys exceed by far: weights of a tile have then to be computed again.
TEST(AttendFloat8Chunk, SteepScoresMatchFloat64) {
  for (const ScaleKind scales : kEachScales) {
    for (const float scale : {1.0f, 8.0f}) {
      for (const int dim : {64, 128}) {
        CaseSpec spec = float8_case({8, 2, dim, dim, 16}, scales,
                                    {{.q_len = 200, .kv_len = 1500}, {.q_len = 40, .kv_len = 900}});
        spec.options.mask = mods::causal();
        spec.options.scale = scale;
        AttentionCase c(spec);
        EXPECT_TRUE(c.matches(c.run())) << name(scales) << " " << scale << " " << dim;
      }
    }
  }
}

// Queries of any size that their type has: each row is scaled before it becomes float16.
TEST(AttendFloat8Chunk, QueriesOfAnySize) {
  for (const Dtype q : {Dtype::kBFloat16, Dtype::kFloat32}) {
    for (const float size : {0x1p-60f, 0x1p60f}) {
      for (const int dim : {128, 256}) {
        CaseSpec spec =
            float8_case({8, 2, dim, dim, 16}, kRowScales, {{.q_len = 30, .kv_len = 300}});
        spec.q_dtype = q;
        spec.q_size = size;
        spec.options.scale = 0.1f / size;
        AttentionCase c(spec);
        EXPECT_TRUE(c.matches(c.run())) << name(q) << " " << size << " " << dim;
      }
    }
  }
}

class PoisonedFloat8Chunk : public testing::TestWithParam<ScaleKind> {
 protected:
  static CaseSpec spec(int dim = 128) {
    return float8_case({8, 2, dim, dim, 16}, GetParam(),
                       {{.q_len = 40, .kv_len = 130}, {.q_len = 50, .kv_len = 290}});
  }
  static constexpr std::int32_t kPositions[] = {0, 63, 128, 250, 288, 289};
};

TEST_P(PoisonedFloat8Chunk, Keys) {
  expect_contained(spec(), &AttentionCase::poison_key, kPositions);
}
TEST_P(PoisonedFloat8Chunk, Values) {
  expect_contained(spec(), &AttentionCase::poison_value, kPositions);
}
// Rows in float32, for the recomputation, lie where its queries were.
TEST_P(PoisonedFloat8Chunk, ValuesOfManyDims) {
  expect_contained(spec(256), &AttentionCase::poison_value, kPositions);
}

INSTANTIATE_TEST_SUITE_P(Kernels, PoisonedFloat8Chunk, testing::ValuesIn(kEachScales),
                         [](const auto& param) { return test_name(param.param); });

class PoisonedChunkScales : public PoisonedFloat8Chunk {};
TEST_P(PoisonedChunkScales, ShowWhereTheyAreSeen) {
  expect_contained(spec(), &AttentionCase::poison_value_scale, kPositions);
}
INSTANTIATE_TEST_SUITE_P(Kernels, PoisonedChunkScales, testing::Values(kRowScales));

// Each query sees its own key alone, so its output is that key's value, whose weight is rounded to
// float16: however small the value's scale is beside that of its neighbours. The mask is one of
// which planning cannot find out that pages are not seen.
void expect_own_values(int scale_bits, int scale_step) {
  constexpr std::int64_t kTokens = 400;
  CaseSpec spec =
      float8_case({4, 2, 128, 128, 16}, kRowScales, {{.q_len = kTokens, .kv_len = kTokens}});
  spec.scale_bits = scale_bits;
  spec.scale_step = scale_step;
  spec.options.mask = [](auto, auto, auto q, auto kv) { return (kv - q) % 1000 == 0; };
  AttentionCase c(spec);
  const CaseResult result = c.run();
  const ConstKvPool pool = c.pool();
  for (std::int64_t token = 0; token < kTokens; ++token) {
    const std::int64_t page = c.batch().pages[static_cast<std::size_t>(token / 16)].page;
    for (std::int64_t head = 0; head < 4; ++head) {
      const std::int64_t row = (page * 2 + head / 2) * 16 + token % 16;
      const float scale = static_cast<const float*>(pool.v_scale.per_token.data)[row];
      for (std::int64_t d = 0; d < 128; ++d) {
        const float value = load_element(pool.v.data, pool.v.dtype, row * 128 + d) * scale;
        ASSERT_NEAR(result.o.at(token, head, d), value, std::abs(value) * 0x1p-11f) << token;
      }
    }
  }
}

TEST(AttendFloat8Chunk, SmallScalesLoseNothing) { expect_own_values(16, 0); }
TEST(AttendFloat8Chunk, ScalesMayChangeFromTileToTile) { expect_own_values(5, 40); }
TEST(AttendFloat8Chunk, ScalesMayDifferByMoreThanWeights) { expect_own_values(60, 0); }

}  // namespace
}  // namespace kvmesh::test
