// Cases beyond the attention cases of the CPU: every tile shape of the CUDA kernels, splits,
// and random cases of the shapes that the tensor cores take.
#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "kernels/cuda/attend/cuda_attend.hpp"
#include "tests/gpu/gpu_support.hpp"
#include "tests/support/attention_case.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

constexpr Dtype kTensorCoreDtypes[] = {Dtype::kFloat16, Dtype::kBFloat16};

struct Cut {
  AttentionShape shape;
  std::int64_t q_len;
};

std::string name_of_cut(const testing::TestParamInfo<Cut>& info) {
  const auto& [shape, q_len] = info.param;
  return fmt::format("H{}Kv{}K{}V{}P{}Q{}", shape.q_heads, shape.kv_heads, shape.k_dim, shape.v_dim,
                     shape.page_size, q_len);
}

class AttendCuts : public testing::TestWithParam<Cut> {};

// Sequences of this many queries, and shorter ones beside them, with and without mods.
TEST_P(AttendCuts, MatchFloat64) {
  const auto [shape, q_len] = GetParam();
  for (Dtype dtype : kTensorCoreDtypes) {
    CaseSpec spec{.shape = shape, .dtype = dtype, .q_dtype = dtype};
    spec.sequences = {{.q_len = q_len, .kv_len = q_len},
                      {.q_len = 1, .kv_len = 333},
                      {.q_len = q_len, .kv_len = q_len + 201},
                      {.q_len = 1, .kv_len = 0}};
    for (const MaskMod& mask : {mods::no_mask(), mods::causal()}) {
      spec.options.mask = mask;
      spec.options.score = ScoreMod();
      AttentionCase plain(spec);
      EXPECT_TRUE(plain.matches(plain.run())) << name(dtype);
      spec.options.score = mods::alibi(shape.q_heads);
      AttentionCase modified(spec);
      EXPECT_TRUE(modified.matches(modified.run())) << name(dtype) << " ALiBi";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kernels, AttendCuts,
    testing::Values(
        Cut{{8, 2, 64, 64, 16}, 1}, Cut{{8, 2, 64, 64, 16}, 8}, Cut{{8, 2, 64, 64, 16}, 13},
        Cut{{8, 2, 64, 64, 16}, 100}, Cut{{8, 2, 128, 128, 16}, 1}, Cut{{8, 2, 128, 128, 64}, 8},
        Cut{{8, 2, 128, 128, 16}, 16}, Cut{{8, 2, 128, 128, 16}, 100},
        Cut{{16, 1, 128, 128, 16}, 1}, Cut{{16, 1, 128, 128, 1}, 20}, Cut{{2, 2, 96, 96, 32}, 1},
        Cut{{2, 2, 96, 96, 32}, 150}, Cut{{4, 1, 160, 160, 16}, 2}, Cut{{4, 1, 224, 224, 8}, 1},
        Cut{{4, 1, 192, 128, 16}, 1}, Cut{{4, 1, 192, 128, 16}, 70}, Cut{{4, 2, 256, 256, 16}, 1},
        Cut{{4, 2, 256, 256, 256}, 60}, Cut{{4, 1, 256, 256, 16}, 16},
        Cut{{8, 1, 256, 256, 16}, 150}, Cut{{4, 2, 72, 40, 5}, 1}, Cut{{4, 2, 72, 40, 5}, 90},
        Cut{{8, 2, 96, 96, 16}, 100}, Cut{{8, 2, 96, 128, 64}, 60}, Cut{{8, 2, 160, 96, 16}, 40},
        Cut{{4, 1, 160, 160, 16}, 70}, Cut{{4, 1, 224, 224, 8}, 60}, Cut{{24, 1, 64, 64, 16}, 3},
        Cut{{130, 1, 64, 64, 16}, 2}, Cut{{4, 1, 576, 512, 16}, 3}),
    name_of_cut);

class LatentCuts : public testing::TestWithParam<Cut> {};

// Cases of latent pages, with a mask and with a score mod.
TEST_P(LatentCuts, MatchFloat64) {
  const auto [shape, q_len] = GetParam();
  CaseSpec spec{
      .shape = shape, .dtype = Dtype::kBFloat16, .q_dtype = Dtype::kBFloat16, .latent = true};
  spec.sequences = {{.q_len = q_len, .kv_len = q_len},
                    {.q_len = 1, .kv_len = 153},
                    {.q_len = q_len, .kv_len = q_len + 201},
                    {.q_len = 1, .kv_len = 0}};
  spec.options.mask = mods::causal();
  AttentionCase masked(spec);
  EXPECT_TRUE(masked.matches(masked.run()));
  spec.dtype = spec.q_dtype = Dtype::kFloat16;
  spec.options.mask = mods::no_mask();
  spec.options.score = mods::alibi(shape.q_heads);
  spec.o = {.gap = 1};  // rows that are not aligned
  AttentionCase modified(spec);
  EXPECT_TRUE(modified.matches(modified.run()));
}

INSTANTIATE_TEST_SUITE_P(
    Kernels, LatentCuts,
    testing::Values(Cut{{16, 1, 576, 512, 64}, 1}, Cut{{16, 1, 576, 512, 16}, 2},
                    Cut{{16, 2, 576, 512, 8}, 1}, Cut{{16, 1, 576, 512, 16}, 7},
                    Cut{{128, 1, 576, 512, 64}, 1}, Cut{{128, 1, 576, 512, 16}, 2},
                    Cut{{40, 1, 576, 512, 128}, 1}, Cut{{8, 2, 192, 128, 16}, 5},
                    Cut{{8, 2, 192, 128, 16}, 50}, Cut{{16, 1, 576, 512, 1}, 1},
                    Cut{{16, 1, 576, 512, 4}, 2}, Cut{{8, 1, 576, 512, 1}, 1},
                    Cut{{16, 2, 576, 512, 1}, 9}, Cut{{128, 1, 576, 512, 1}, 1},
                    Cut{{128, 1, 576, 512, 4}, 2}, Cut{{40, 1, 576, 512, 2}, 1},
                    Cut{{16, 2, 320, 256, 2}, 1}, Cut{{16, 1, 576, 512, 1}, 50}),
    name_of_cut);

// Keys anywhere in memory, as those of token lists: of each sequence some positions, one page each,
// whose number no tile divides. All other rows of the pool are NaN. Pages with gaps, too.
TEST(AttendLists, LatentKeysMatchFloat64) {
  for (const int q_heads : {8, 16, 32, 64, 128}) {
    for (const std::int64_t gap : {0, 8}) {
      CaseSpec spec{.shape = {q_heads, 1, 576, 512, gap == 0 ? 1 : 16},
                    .dtype = Dtype::kBFloat16,
                    .q_dtype = Dtype::kBFloat16,
                    .latent = true,
                    .pool = {.gap = gap}};
      for (const std::int64_t listed : {1, 63, 64, 65, 200, 2047}) {
        CaseSequence sequence{
            .q_len = 1, .kv_len = 3 * listed, .local = std::vector<std::int32_t>()};
        for (std::int32_t i = 0; i < listed; ++i) sequence.local->push_back(3 * i + i % 3);
        if (gap != 0) sequence.local.reset();
        spec.sequences.push_back(sequence);
      }
      spec.sequences.push_back({.q_len = 1, .kv_len = 40, .local = std::vector<std::int32_t>()});
      AttentionCase c(spec);
      EXPECT_TRUE(c.matches(c.run())) << q_heads << " gap " << gap;
    }
  }
}

// One long sequence is split over the whole device; beside it are short ones.
TEST(AttendSplits, LongSequencesMatchFloat64) {
  for (int page_size : {16, 256, 7}) {
    CaseSpec spec{
        .shape = {8, 2, 64, 64, page_size}, .dtype = Dtype::kBFloat16, .q_dtype = Dtype::kBFloat16};
    spec.sequences = {{.q_len = 1, .kv_len = 40'003}, {.q_len = 2, .kv_len = 700}};
    spec.options.mask = mods::causal();
    AttentionCase c(spec);
    EXPECT_TRUE(c.matches(c.run())) << page_size;
  }
}

TEST(AttendSplits, SplitWithoutVisibleKeysAddsNothing) {
  CaseSpec spec{
      .shape = {4, 2, 64, 64, 16}, .dtype = Dtype::kBFloat16, .q_dtype = Dtype::kBFloat16};
  spec.sequences = {{.q_len = 3, .kv_len = 9000}};
  const MaskMod last_only = [](auto, auto h, auto, auto kv) { return kv > 8990 && h != 1; };
  const Buffer<std::int32_t> first_visible({8990, 0});
  spec.options.mask = [first_visible](auto, auto h, auto, auto kv) {
    return kv > first_visible[Expr(0)] && h != 1;
  };
  AttentionCase c(spec);
  EXPECT_TRUE(c.matches(c.run(), last_only));
}

void expect_nan_in_its_rows(const AttentionShape& shape, bool latent, std::int64_t length = 9000) {
  CaseSpec spec{
      .shape = shape, .dtype = Dtype::kBFloat16, .q_dtype = Dtype::kBFloat16, .latent = latent};
  spec.sequences = {{.q_len = 2, .kv_len = length}, {.q_len = 1, .kv_len = length}};
  spec.options.mask = mods::causal();
  for (std::int64_t position : {std::int64_t{0}, length / 2, length - 1}) {
    AttentionCase in_key(spec);
    in_key.poison_key(0, position);
    AttentionCase in_value(spec);
    in_value.poison_value(0, position);
    // The last position is seen by the second of the two queries alone.
    const auto sees = [&](std::int64_t token, std::int32_t) {
      return token == 1 || (token == 0 && position < length - 1);
    };
    EXPECT_TRUE(in_key.matches(in_key.run(), sees)) << position;
    EXPECT_TRUE(in_value.matches(in_value.run(), sees)) << position;
  }
}

TEST(AttendSplits, NanReachesItsRowsOnly) {
  expect_nan_in_its_rows({4, 2, 64, 64, 16}, false);
  expect_nan_in_its_rows({80, 2, 96, 96, 16}, false);
}

TEST(AttendSplits, NanInALatentRowReachesItsRowsOnly) {
  expect_nan_in_its_rows({8, 1, 576, 512, 64}, true);
  expect_nan_in_its_rows({8, 1, 576, 512, 1}, true, 700);
  expect_nan_in_its_rows({40, 1, 576, 512, 1}, true, 700);
  expect_nan_in_its_rows({80, 2, 192, 128, 64}, true);
}

// Many query tokens, all the same, over the keys of one sequence: nothing is split.
void expect_rows_like(const CaseResult& row, AttentionCase& one, const AttentionBatch& batch) {
  const AttentionShape& shape = one.spec().shape;
  const std::int64_t tokens = batch.q_indptr.back();
  ConstTensorView q = one.q();
  q.shape[0] = tokens;
  q.strides[0] = 0;
  OwnedTensor o(Dtype::kFloat32, {tokens, shape.q_heads, shape.v_dim});
  OwnedTensor lse(Dtype::kFloat32, {tokens, shape.q_heads});
  run_attention(shape, batch, one.spec().options, q, one.pool(), {o.view(), lse.view()}, 1);
  float largest = 0, o_error = 0, lse_error = 0;
  for (std::int64_t h = 0; h < shape.q_heads; ++h) {
    const float expected = row.lse.at(0, h);
    for (std::int64_t t = 0; t < tokens; ++t) {
      const float error = std::abs(lse.at(t, h) - expected) / std::max(1.0f, std::abs(expected));
      lse_error = error <= lse_error ? lse_error : error;  // a NaN is an error
      for (std::int64_t d = 0; d < shape.v_dim; ++d) {
        const float difference = std::abs(o.at(t, h, d) - row.o.at(0, h, d));
        o_error = difference <= o_error ? o_error : difference;
        largest = std::max(largest, std::abs(row.o.at(0, h, d)));
      }
    }
  }
  EXPECT_LT(lse_error, 2e-6f);
  EXPECT_LT(o_error, 4 * 0x1p-9f * largest);
}

// Two thousand steps in one task: their rounding errors must not add up.
TEST(AttendSplits, LongTaskEqualsManyShortTasks) {
  CaseSpec spec{
      .shape = {16, 1, 64, 64, 64}, .dtype = Dtype::kBFloat16, .q_dtype = Dtype::kBFloat16};
  spec.sequences = {{.q_len = 1, .kv_len = 131'072}};
  AttentionCase one(spec);
  const CaseResult split = one.run();
  EXPECT_TRUE(one.matches(split));

  AttentionBatch prefill = one.batch();
  prefill.q_indptr = {0, 9000};
  expect_rows_like(split, one, prefill);

  AttentionBatch decode{
      .q_indptr = {0}, .kv_lens = {}, .q_positions = {}, .page_indptr = {0}, .pages = {}};
  const std::vector<LocalPage>& pages = one.batch().pages;
  for (std::int64_t s = 1; s <= 1100; ++s) {
    decode.q_indptr.push_back(s);
    decode.kv_lens.push_back(131'072);
    decode.page_indptr.push_back(s * std::ssize(pages));
    decode.pages.insert(decode.pages.end(), pages.begin(), pages.end());
  }
  expect_rows_like(split, one, decode);
}

// Long enough for the blocks of 128 rows to come one per thread block.
TEST(AttendPrefill, LongChunkMatchesFloat64) {
  CaseSpec spec{
      .shape = {8, 8, 64, 64, 16}, .dtype = Dtype::kBFloat16, .q_dtype = Dtype::kBFloat16};
  spec.sequences = {{.q_len = 700, .kv_len = 1500}, {.q_len = 300, .kv_len = 300}};
  spec.options.mask = mods::causal();
  AttentionCase c(spec);
  EXPECT_TRUE(c.matches(c.run()));
}

// Scores that later keys exceed by far, at 8 by more than a float can be apart: weights of a tile
// have then to be computed again.
TEST(AttendPrefill, SteepScoresMatchFloat64) {
  for (Dtype dtype : kTensorCoreDtypes) {
    for (float scale : {1.0f, 8.0f}) {
      for (int dim : {96, 128}) {
        CaseSpec spec{.shape = {8, 2, dim, dim, 16}, .dtype = dtype, .q_dtype = dtype};
        spec.sequences = {{.q_len = 200, .kv_len = 1500}, {.q_len = 40, .kv_len = 900}};
        spec.options.mask = mods::causal();
        spec.options.scale = scale;
        AttentionCase c(spec);
        EXPECT_TRUE(c.matches(c.run())) << name(dtype) << " " << scale << " " << dim;
      }
    }
  }
}

// Slopes raise the reference of exponents from tile to tile.
TEST(AttendPrefill, SoftCapsMatchFloat64) {
  const ScoreMod both = mods::compose(mods::soft_cap(30.0f), mods::alibi(8));
  for (Dtype dtype : kTensorCoreDtypes) {
    for (int dim : {64, 128, 256}) {
      for (float scale : {0.1f, 8.0f, -1.0f}) {
        for (const ScoreMod& score : {mods::soft_cap(30.0f), both}) {
          CaseSpec spec{.shape = {8, 2, dim, dim, 16}, .dtype = dtype, .q_dtype = dtype};
          spec.sequences = {{.q_len = 200, .kv_len = 1500}, {.q_len = 40, .kv_len = 901}};
          spec.options.mask = mods::causal();
          spec.options.scale = scale;
          spec.options.score = score;
          AttentionCase c(spec);
          EXPECT_TRUE(c.matches(c.run())) << name(dtype) << " " << scale << " " << dim;
        }
      }
    }
  }
}

// Mods by which scores grow from tile to tile: weights are lowered, or computed again where they
// are too large for a float, or where the first keys all but vanish.
TEST(AttendPrefill, SteepModsMatchFloat64) {
  const auto slope = [](float step) -> ScoreMod {
    return [=](auto s, auto, auto, auto, auto kv) { return s + to_float(kv) * step; };
  };
  const ScoreMod late = [](auto s, auto, auto, auto, auto kv) {
    return where(kv < 300, -1e30f, s);
  };
  for (const ScoreMod& score : {slope(0.05f), slope(0.25f), slope(4.0f), slope(-4.0f), late}) {
    for (int dim : {64, 128, 192}) {
      CaseSpec spec{
          .shape = {8, 2, dim, dim, 16}, .dtype = Dtype::kBFloat16, .q_dtype = Dtype::kBFloat16};
      spec.sequences = {{.q_len = 200, .kv_len = 1500}, {.q_len = 40, .kv_len = 901}};
      spec.options.mask = mods::sliding_window(1000);
      spec.options.score = score;
      AttentionCase c(spec);
      EXPECT_TRUE(c.matches(c.run())) << dim;
    }
  }
}

CaseSpec random_case(std::uint64_t seed) {
  Random random(seed);
  const auto number = [&](int low, int high) {
    return static_cast<int>(random.integer(low, high));
  };
  CaseSpec spec;
  spec.seed = seed;
  const int kv_heads = number(1, 3);
  spec.shape = {.q_heads = kv_heads * number(1, 16),
                .kv_heads = kv_heads,
                .k_dim = 8 * number(1, random.coin() ? 8 : 32),
                .v_dim = 8 * number(1, random.coin() ? 8 : 32),
                .page_size = number(1, random.coin() ? 8 : 140)};
  spec.dtype = kTensorCoreDtypes[number(0, 1)];
  spec.q_dtype = random.coin() ? spec.dtype : Dtype::kFloat32;
  const int sequences = number(1, 5);
  for (int s = 0; s < sequences; ++s) {
    const int q_len = random.one_in(3) ? number(0, 80) : number(0, 6);
    spec.sequences.push_back({.q_len = q_len, .kv_len = random.integer(q_len, 700)});
  }
  const std::vector<MaskMod> masks{
      mods::no_mask(), mods::causal(), mods::sliding_window(number(1, 70)),
      mods::prefix_lm(number(0, 100)),
      [](auto, auto h, auto q, auto kv) { return (q + h + kv) % 3 != 1; }};
  const std::vector<ScoreMod> scores{
      ScoreMod(), mods::alibi(3 * spec.shape.q_heads), mods::soft_cap(2.5f),
      mods::compose(mods::soft_cap(2.5f), mods::alibi(3 * spec.shape.q_heads))};
  spec.options.mask = random.pick(masks);
  spec.options.score = random.pick(scores);
  spec.options.first_head = spec.shape.q_heads * number(0, 2);
  if (random.coin()) spec.options.scale = 0.3f * random.real();
  if (random.coin()) spec.pool.order = {1, 0, 2, 3};
  spec.pool.gap = 8 * number(0, 1);
  return spec;
}

class AttendRandomOnTensorCores : public testing::TestWithParam<int> {};

TEST_P(AttendRandomOnTensorCores, MatchesFloat64) {
  const std::uint64_t seed =
      seed_or(std::random_device{}()) + static_cast<std::uint64_t>(GetParam());
  SCOPED_TRACE(fmt::format("run it again with KVMESH_SEED={}, the first alone", seed));
  AttentionCase c(random_case(seed));
  EXPECT_TRUE(c.matches(c.run()));
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttendRandomOnTensorCores, testing::Range(0, 40));

}  // namespace
}  // namespace kvmesh::test
