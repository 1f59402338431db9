// Attention over float8 pages by tensor cores: every tile shape of that kernel, both kinds of
// scales, and poison in slots that no row may see.
#include <fmt/format.h>

#include <cmath>

#include "tests/gpu/device_tensor.hpp"
#include "tests/gpu/gpu_support.hpp"
#include "tests/support/attention_case.hpp"

namespace kvmesh::test {
namespace {

constexpr KvScales kNumbers{.kind = ScaleKind::kPerTensor, .k = 0.0025f, .v = 0.003f};
constexpr KvScales kAllScales[] = {{}, kNumbers};

CaseSpec float8_case(const AttentionShape& shape, const KvScales& scales,
                     std::vector<CaseSequence> sequences) {
  CaseSpec spec{.shape = shape, .dtype = Dtype::kFloat8E4M3, .q_dtype = Dtype::kBFloat16};
  spec.scales = scales;
  spec.sequences = std::move(sequences);
  return spec;
}

struct Cut {
  AttentionShape shape;
  std::int64_t q_len;
};

class AttendFloat8Cuts : public testing::TestWithParam<Cut> {};

// Sequences of this many queries, and shorter ones beside them, with and without mods. Their last
// pages are NaN behind the end.
TEST_P(AttendFloat8Cuts, MatchFloat64) {
  const auto [shape, q_len] = GetParam();
  for (const KvScales& scales : kAllScales) {
    CaseSpec spec = float8_case(shape, scales,
                                {{.q_len = q_len, .kv_len = q_len},
                                 {.q_len = 1, .kv_len = 333},
                                 {.q_len = q_len, .kv_len = q_len + 201},
                                 {.q_len = 1, .kv_len = 0},
                                 {.q_len = 1, .kv_len = 256}});
    AttentionCase plain(spec);
    EXPECT_TRUE(plain.matches(plain.run())) << name(scales.kind);
    spec.q_dtype = Dtype::kFloat32;
    spec.options.mask = mods::causal();
    spec.options.score = mods::alibi(shape.q_heads);
    AttentionCase modified(spec);
    EXPECT_TRUE(modified.matches(modified.run())) << name(scales.kind) << " ALiBi";
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttendFloat8Cuts,
                         testing::Values(Cut{{8, 2, 64, 64, 8}, 1}, Cut{{8, 2, 64, 64, 16}, 8},
                                         Cut{{8, 2, 128, 128, 16}, 2}, Cut{{8, 2, 128, 128, 64}, 4},
                                         Cut{{8, 2, 128, 128, 8}, 8},
                                         Cut{{16, 1, 128, 128, 128}, 1},
                                         Cut{{8, 2, 192, 128, 16}, 1}, Cut{{4, 1, 192, 192, 32}, 7},
                                         Cut{{4, 2, 256, 256, 16}, 1}, Cut{{4, 2, 256, 256, 64}, 8},
                                         Cut{{8, 2, 128, 128, 16}, 150}),
                         [](const auto& param) {
                           const AttentionShape& s = param.param.shape;
                           return fmt::format("H{}Kv{}K{}V{}P{}Q{}", s.q_heads, s.kv_heads, s.k_dim,
                                              s.v_dim, s.page_size, param.param.q_len);
                         });

// Every head of a group has a mask of its own, and pages are masked for some of them only.
TEST(AttendFloat8, UnderAMaskOfEachHead) {
  CaseSpec spec = float8_case({8, 2, 128, 128, 16}, {}, {{.q_len = 2, .kv_len = 700}});
  spec.options.mask = [](auto, auto h, auto q, auto kv) { return (q + h + kv) % 3 == 0; };
  AttentionCase c(spec);
  EXPECT_TRUE(c.matches(c.run()));
}

// One long sequence is split over the whole device; beside it is a short one.
TEST(AttendFloat8, SplitsMatchFloat64) {
  for (const KvScales& scales : kAllScales) {
    CaseSpec spec = float8_case({8, 2, 128, 128, 16}, scales,
                                {{.q_len = 1, .kv_len = 40'003}, {.q_len = 2, .kv_len = 700}});
    spec.options.mask = mods::causal();
    AttentionCase c(spec);
    EXPECT_TRUE(c.matches(c.run())) << name(scales.kind);
  }
}

// Queries of any size that float32 has: each row is scaled before it becomes float16.
TEST(AttendFloat8, QueriesOfAnySize) {
  for (float size : {0x1p-60f, 0x1p60f}) {
    CaseSpec spec = float8_case({8, 2, 128, 128, 16}, {}, {{.q_len = 1, .kv_len = 300}});
    spec.q_size = size;
    spec.options.scale = 0.1f / size;
    AttentionCase c(spec);
    EXPECT_TRUE(c.matches(c.run())) << size;
  }
}

class PoisonedFloat8 : public testing::TestWithParam<ScaleKind> {
 protected:
  static CaseSpec spec(const MaskMod& mask) {
    CaseSpec spec = float8_case({8, 2, 128, 128, 16},
                                GetParam() == ScaleKind::kPerTensor ? kNumbers : KvScales{},
                                {{.q_len = 2, .kv_len = 130}, {.q_len = 3, .kv_len = 90}});
    spec.options.mask = mask;
    return spec;
  }
  using Poison = void (AttentionCase::*)(std::size_t, std::int64_t);
  // Poisons one position of the second sequence and expects NaN in the rows that see it.
  static void expect_contained(Poison poison) {
    for (const MaskMod& mask : {mods::no_mask(), mods::causal(), mods::sliding_window(20)}) {
      for (std::int32_t position : {0, 63, 64, 70, 88, 89}) {
        AttentionCase c(spec(mask));
        (c.*poison)(1, position);
        const auto sees = [&](std::int64_t token, std::int32_t head) {
          return token >= 2 && mask(1, head, c.position_of(1, token), position);
        };
        EXPECT_TRUE(c.matches(c.run(), sees)) << "position " << position;
      }
    }
  }
};

TEST_P(PoisonedFloat8, Keys) { expect_contained(&AttentionCase::poison_key); }
TEST_P(PoisonedFloat8, Values) { expect_contained(&AttentionCase::poison_value); }

INSTANTIATE_TEST_SUITE_P(Kernels, PoisonedFloat8,
                         testing::Values(ScaleKind::kPerTensor, ScaleKind::kPerTokenAndHead),
                         [](const auto& param) {
                           return param.param == ScaleKind::kPerTensor ? "Numbers" : "Rows";
                         });

class PoisonedScales : public PoisonedFloat8 {};
TEST_P(PoisonedScales, PastTheLengthDoNotShow) {
  expect_contained(&AttentionCase::poison_value_scale);
}
INSTANTIATE_TEST_SUITE_P(Kernels, PoisonedScales, testing::Values(ScaleKind::kPerTokenAndHead));

// Each query sees its own key alone, so its output is that key's value: however small the value's
// scale is beside that of its neighbours.
TEST(AttendFloat8, SmallScalesLoseNothing) {
  CaseSpec spec = float8_case({8, 2, 128, 128, 16}, {}, {{.q_len = 8, .kv_len = 8}});
  spec.scale_bits = 60;
  spec.options.mask = mods::sliding_window(1);
  AttentionCase c(spec);
  const CaseResult result = c.run();
  const std::int64_t page = c.batch().pages[0].page;
  const ConstKvPool pool = c.pool();
  for (std::int64_t token = 0; token < 8; ++token) {
    for (std::int64_t head = 0; head < 8; ++head) {
      const std::int64_t row = (page * 2 + head / 4) * 16 + token;
      const float scale = static_cast<const float*>(pool.v_scale.per_token.data)[row];
      for (std::int64_t d = 0; d < 128; ++d) {
        const float value = load_element(pool.v.data, pool.v.dtype, row * 128 + d) * scale;
        EXPECT_NEAR(result.o.at(token, head, d), value, std::abs(value) * 1e-5f) << token;
      }
    }
  }
}

}  // namespace
}  // namespace kvmesh::test
