// Attention of few rows over float8 pages by tensor cores, and of all rows over latent ones: every
// tile shape of these kernels, each kind of scales, and poison in slots that no row may see.
#include <fmt/format.h>

#include <cmath>

#include "tests/gpu/float8_case.hpp"

namespace kvmesh::test {
namespace {

// Sequences of this many queries, and shorter ones beside them, with and without mods. Their last
// pages are NaN behind the end.
void expect_matches(const Float8Cut& cut, bool latent) {
  const auto [shape, q_len] = cut;
  for (const ScaleKind scales : kEachScales) {
    CaseSpec spec = float8_case(shape, scales,
                                {{.q_len = q_len, .kv_len = q_len},
                                 {.q_len = 1, .kv_len = 333},
                                 {.q_len = q_len, .kv_len = q_len + 201},
                                 {.q_len = 1, .kv_len = 0},
                                 {.q_len = 1, .kv_len = 256}},
                                latent);
    AttentionCase plain(spec);
    EXPECT_TRUE(plain.matches(plain.run())) << name(scales);
    spec.q_dtype = Dtype::kFloat32;
    spec.options.mask = mods::causal();
    spec.options.score = mods::alibi(shape.q_heads);
    spec.o = {.gap = latent ? 1 : 0};  // rows that are not aligned
    AttentionCase modified(spec);
    EXPECT_TRUE(modified.matches(modified.run())) << name(scales) << " ALiBi";
  }
}

class AttendFloat8Cuts : public testing::TestWithParam<Float8Cut> {};

TEST_P(AttendFloat8Cuts, MatchFloat64) { expect_matches(GetParam(), false); }

INSTANTIATE_TEST_SUITE_P(
    Kernels, AttendFloat8Cuts,
    testing::Values(Float8Cut{{8, 2, 64, 64, 8}, 1}, Float8Cut{{8, 2, 64, 64, 16}, 8},
                    Float8Cut{{8, 2, 128, 128, 16}, 2}, Float8Cut{{8, 2, 128, 128, 64}, 4},
                    Float8Cut{{8, 2, 128, 128, 8}, 8}, Float8Cut{{16, 1, 128, 128, 128}, 1},
                    Float8Cut{{8, 2, 192, 128, 16}, 1}, Float8Cut{{4, 1, 192, 192, 32}, 7},
                    Float8Cut{{4, 2, 256, 256, 16}, 1}, Float8Cut{{4, 2, 256, 256, 64}, 8}),
    name_of_float8_cut);

class LatentFloat8Cuts : public testing::TestWithParam<Float8Cut> {};

TEST_P(LatentFloat8Cuts, MatchFloat64) { expect_matches(GetParam(), true); }

INSTANTIATE_TEST_SUITE_P(
    Kernels, LatentFloat8Cuts,
    testing::Values(Float8Cut{{16, 1, 576, 512, 64}, 1}, Float8Cut{{16, 1, 576, 512, 16}, 2},
                    Float8Cut{{16, 2, 576, 512, 8}, 1}, Float8Cut{{16, 1, 576, 512, 16}, 7},
                    Float8Cut{{128, 1, 576, 512, 64}, 1}, Float8Cut{{128, 1, 576, 512, 16}, 2},
                    Float8Cut{{40, 1, 576, 512, 128}, 1}, Float8Cut{{8, 2, 192, 128, 16}, 5},
                    Float8Cut{{8, 1, 320, 256, 256}, 20}, Float8Cut{{8, 2, 256, 128, 32}, 4}),
    name_of_float8_cut);

// Every head of a group has a mask of its own, and pages are masked for some of them only.
TEST(AttendFloat8, UnderAMaskOfEachHead) {
  const MaskMod third = [](auto, auto h, auto q, auto kv) { return (q + h + kv) % 3 == 0; };
  CaseSpec spec = float8_case({8, 2, 128, 128, 16}, kRowScales, {{.q_len = 2, .kv_len = 700}});
  spec.options.mask = third;
  AttentionCase c(spec);
  EXPECT_TRUE(c.matches(c.run()));
  for (const int heads : {16, 64}) {
    spec = float8_case({heads, 1, 576, 512, 16}, kRowScales, {{.q_len = 1, .kv_len = 700}}, true);
    spec.options.mask = third;
    AttentionCase latent(spec);
    EXPECT_TRUE(latent.matches(latent.run())) << heads;
  }
}

// One long sequence is split over the whole device; beside it is a short one.
TEST(AttendFloat8, SplitsMatchFloat64) {
  for (const ScaleKind scales : kEachScales) {
    const std::vector<CaseSequence> sequences{{.q_len = 1, .kv_len = 40'003},
                                              {.q_len = 2, .kv_len = 700}};
    CaseSpec spec = float8_case({8, 2, 128, 128, 16}, scales, sequences);
    spec.options.mask = mods::causal();
    AttentionCase c(spec);
    EXPECT_TRUE(c.matches(c.run())) << name(scales);
    for (const int heads : {8, 64}) {
      spec = float8_case({heads, 1, 576, 512, 64}, scales, sequences, true);
      spec.options.mask = mods::causal();
      AttentionCase latent(spec);
      EXPECT_TRUE(latent.matches(latent.run())) << name(scales) << ", heads " << heads;
    }
  }
}

// Scores that later keys exceed by far: outputs are made relative to new references in most tiles.
TEST(AttendFloat8, SteepScoresOverLatentPagesMatchFloat64) {
  for (const int heads : {16, 64}) {
    for (const ScaleKind scales : kEachScales) {
      CaseSpec spec =
          float8_case({heads, 1, 576, 512, 16}, scales,
                      {{.q_len = 1, .kv_len = 1500}, {.q_len = 1, .kv_len = 900}}, true);
      spec.options.scale = 8.0f;
      AttentionCase c(spec);
      EXPECT_TRUE(c.matches(c.run())) << heads << " " << name(scales);
    }
  }
}

// Queries of any size that float32 has: each row is scaled before it becomes float16.
TEST(AttendFloat8, QueriesOfAnySize) {
  for (bool latent : {false, true}) {
    const AttentionShape shape =
        latent ? AttentionShape{16, 1, 576, 512, 16} : AttentionShape{8, 2, 128, 128, 16};
    for (float size : {0x1p-60f, 0x1p60f}) {
      for (ScaleKind scales : {kRowScales, ScaleKind::kPerHead}) {
        CaseSpec spec = float8_case(shape, scales, {{.q_len = 1, .kv_len = 300}}, latent);
        spec.q_size = size;
        spec.options.scale = 0.1f / size;
        AttentionCase c(spec);
        EXPECT_TRUE(c.matches(c.run())) << size << name(scales) << (latent ? ", latent" : "");
      }
    }
  }
}

struct Poisoned {
  AttentionShape shape;
  bool latent;
  ScaleKind scales;
};
std::string name_of_poisoned(const testing::TestParamInfo<Poisoned>& info) {
  const auto& [shape, latent, scales] = info.param;
  return fmt::format("{}{}{}", test_name(scales), latent ? "Latent" : "", shape.q_heads);
}
constexpr AttentionShape kPoisonedKv{8, 2, 128, 128, 16};
/// Shapes of up to 16 rows, and of 64.
constexpr AttentionShape kPoisonedFew{4, 1, 576, 512, 16}, kPoisonedMany{64, 1, 576, 512, 16};

class PoisonedFloat8 : public testing::TestWithParam<Poisoned> {
 protected:
  static CaseSpec spec() {
    const auto& [shape, latent, scales] = GetParam();
    return float8_case(shape, scales, {{.q_len = 2, .kv_len = 130}, {.q_len = 3, .kv_len = 90}},
                       latent);
  }
  static constexpr std::int32_t kPositions[] = {0, 63, 64, 70, 88, 89};
};

TEST_P(PoisonedFloat8, Keys) { expect_contained(spec(), &AttentionCase::poison_key, kPositions); }
TEST_P(PoisonedFloat8, Values) {
  expect_contained(spec(), &AttentionCase::poison_value, kPositions);
}

INSTANTIATE_TEST_SUITE_P(Kernels, PoisonedFloat8,
                         testing::Values(Poisoned{kPoisonedKv, false, ScaleKind::kPerTensor},
                                         Poisoned{kPoisonedKv, false, ScaleKind::kPerHead},
                                         Poisoned{kPoisonedFew, true, ScaleKind::kPerHead},
                                         Poisoned{kPoisonedKv, false, kRowScales},
                                         Poisoned{kPoisonedFew, true, kRowScales},
                                         Poisoned{kPoisonedMany, true, ScaleKind::kPerTensor},
                                         Poisoned{kPoisonedMany, true, kRowScales}),
                         name_of_poisoned);

class PoisonedScales : public PoisonedFloat8 {};
TEST_P(PoisonedScales, PastTheLengthDoNotShow) {
  expect_contained(spec(), &AttentionCase::poison_value_scale, kPositions);
}
INSTANTIATE_TEST_SUITE_P(Kernels, PoisonedScales,
                         testing::Values(Poisoned{kPoisonedKv, false, kRowScales},
                                         Poisoned{kPoisonedMany, true, kRowScales}),
                         name_of_poisoned);

// Each query sees its own key alone, so its output is that key's value: however small the value's
// scale is beside that of its neighbours.
void expect_values_of_own_keys(const AttentionShape& shape, bool latent) {
  CaseSpec spec = float8_case(shape, kRowScales, {{.q_len = 8, .kv_len = 8}}, latent);
  spec.scale_bits = 60;
  spec.options.mask = mods::sliding_window(1);
  AttentionCase c(spec);
  const CaseResult result = c.run();
  const std::int64_t page = c.batch().pages[0].page, group = shape.q_heads / shape.kv_heads;
  const std::int64_t row_dim = latent ? shape.k_dim : shape.v_dim;
  const ConstKvPool pool = c.pool();
  for (std::int64_t token = 0; token < 8; ++token) {
    for (std::int64_t head = 0; head < shape.q_heads; ++head) {
      const std::int64_t row = (page * shape.kv_heads + head / group) * shape.page_size + token;
      const float scale = static_cast<const float*>(pool.v_scale.per_token.data)[row];
      for (std::int64_t d = 0; d < shape.v_dim; ++d) {
        const float value = load_element(pool.v.data, pool.v.dtype, row * row_dim + d) * scale;
        EXPECT_NEAR(result.o.at(token, head, d), value, std::abs(value) * 1e-5f) << token;
      }
    }
  }
}

TEST(AttendFloat8, SmallScalesLoseNothing) {
  expect_values_of_own_keys({8, 2, 128, 128, 16}, false);
  expect_values_of_own_keys({8, 1, 576, 512, 16}, true);
}

}  // namespace
}  // namespace kvmesh::test
