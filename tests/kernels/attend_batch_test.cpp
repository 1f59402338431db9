// Ragged batches, positions, scale, head numbers, and rows that see no key.
#include "tests/support/attention_case.hpp"

namespace kvmesh::test {
namespace {

constexpr double kNothing = -std::numeric_limits<double>::infinity();

// Rows [begin, end) are those of an empty set of keys.
void expect_empty(const CaseResult& result, std::int64_t begin, std::int64_t end) {
  for (std::int64_t t = begin; t < end; ++t) {
    for (std::int64_t h = 0; h < result.o.size(1); ++h) {
      EXPECT_EQ(result.lse.at(t, h), kNothing) << "token " << t << " head " << h;
      for (std::int64_t d = 0; d < result.o.size(2); ++d) EXPECT_EQ(result.o.at(t, h, d), 0.0f);
    }
  }
}

TEST(AttendBatch, SequencesWithoutQueriesKeysOrLocalPages) {
  CaseSpec spec;
  spec.sequences = {{.q_len = 2, .kv_len = 40},
                    {.q_len = 0, .kv_len = 33},
                    {.q_len = 3, .kv_len = 0},
                    {.q_len = 2, .kv_len = 64, .local = std::vector<std::int32_t>{}},
                    {.q_len = 0, .kv_len = 0},
                    {.q_len = 1, .kv_len = 50, .local = std::vector<std::int32_t>{1, 3}}};
  for (const MaskMod& mask : {mods::no_mask(), mods::causal()}) {
    spec.options.mask = mask;
    AttentionCase c(spec);
    const CaseResult result = c.run();
    EXPECT_TRUE(c.matches(result));
    expect_empty(result, 2, 7);
  }
}

TEST(AttendBatch, NoSequencesAtAll) {
  AttentionCase c(CaseSpec{});
  const CaseResult result = c.run();
  EXPECT_EQ(c.tokens(), 0);
  EXPECT_EQ(result.o.written(), 0);
  EXPECT_EQ(result.tiles.visited, 0);
}

TEST(AttendBatch, ManyShortSequencesAndALongOne) {
  CaseSpec spec{.dtype = Dtype::kBFloat16};
  for (int i = 0; i < 60; ++i) spec.sequences.push_back({.q_len = 1, .kv_len = 1 + i % 23});
  spec.sequences.push_back({.q_len = 2, .kv_len = 3000});
  spec.options.mask = mods::causal();
  AttentionCase c(spec);
  EXPECT_TRUE(c.matches(c.run(2)));
}

TEST(AttendBatch, ChunkedPrefillContinuesAtTheEnd) {
  CaseSpec spec{.shape = {4, 2, 40, 40, 16}};
  spec.sequences = {{.q_len = 100, .kv_len = 300}, {.q_len = 70, .kv_len = 70}};
  spec.options.mask = mods::causal();
  AttentionCase c(spec);
  EXPECT_TRUE(c.matches(c.run(2)));
}

// Explicit positions may repeat, jump back and lie past the keys.
TEST(AttendBatch, ExplicitPositionsInAnyOrder) {
  CaseSpec spec;
  spec.sequences = {{.q_len = 6, .kv_len = 90}, {.q_len = 4, .kv_len = 20}};
  spec.positions = {50, 3, 3, 89, 0, 1000, 19, 0, 7, 6};
  for (const MaskMod& mask : {mods::causal(), mods::sliding_window(9), mods::prefix_lm(5)}) {
    spec.options.mask = mask;
    AttentionCase c(spec);
    EXPECT_TRUE(c.matches(c.run()));
  }
}

// More queries than keys: by default they end with the last key, so the first ones lie before
// position 0 and see no key.
TEST(AttendBatch, QueriesBeforeTheFirstKey) {
  CaseSpec spec;
  spec.sequences = {{.q_len = 8, .kv_len = 5}};
  spec.options.mask = mods::causal();
  AttentionCase c(spec);
  const CaseResult result = c.run();
  EXPECT_TRUE(c.matches(result));
  expect_empty(result, 0, 3);
  EXPECT_GT(result.lse.at(3, 0), kNothing);
}

TEST(AttendBatch, FullyMaskedRows) {
  CaseSpec spec;
  spec.sequences = {{.q_len = 40, .kv_len = 100}};
  // Every third query sees no key; those beside it in the same work block do.
  spec.options.mask = [](auto, auto, auto q, auto kv) { return q % 3 != 0 && q >= kv; };
  AttentionCase c(spec);
  const CaseResult result = c.run();
  EXPECT_TRUE(c.matches(result));
  for (std::int64_t t = 0; t < 40; t += 3) expect_empty(result, t, t + 1);

  spec.options.mask = [](auto, auto, auto, auto kv) { return kv < 0; };
  AttentionCase nothing(spec);
  const CaseResult empty = nothing.run();
  expect_empty(empty, 0, 40);
  EXPECT_EQ(empty.tiles.visited, 0);
}

// The same through the scores: a score mod may hide keys too.
TEST(AttendBatch, ScoresOfMinusInfinityHideKeys) {
  CaseSpec spec;
  spec.sequences = {{.q_len = 12, .kv_len = 100}};
  constexpr float kHidden = -std::numeric_limits<float>::infinity();
  spec.options.score = [](auto score, auto, auto, auto q, auto kv) {
    return where(q % 4 != 0 && q >= kv, score, kHidden);
  };
  AttentionCase c(spec);
  const CaseResult result = c.run();
  EXPECT_TRUE(c.matches(result));
  expect_empty(result, 0, 1);
}

// Finite scores are no empty rows, however small: a row of nothing else is the mean of its values.
TEST(AttendBatch, TheLeastFiniteScoreHidesNoKey) {
  CaseSpec spec{.shape = {4, 2, 64, 64, 16}};
  spec.sequences = {{.q_len = 12, .kv_len = 100}, {.q_len = 40, .kv_len = 150}};
  constexpr float kLeast = std::numeric_limits<float>::lowest();
  spec.options.score = [](auto score, auto, auto, auto q, auto kv) {
    return where(q % 4 != 0 && q >= kv, score, kLeast);
  };
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16}) {
    spec.dtype = spec.q_dtype = dtype;
    AttentionCase c(spec);
    EXPECT_TRUE(c.matches(c.run())) << name(dtype);
  }
}

TEST(AttendBatch, Scale) {
  CaseSpec spec;
  spec.sequences = {{.q_len = 2, .kv_len = 70}};
  for (float scale : {0.0f, 0.01f, 1.0f, -0.5f}) {
    spec.options.scale = scale;
    AttentionCase c(spec);
    EXPECT_TRUE(c.matches(c.run())) << scale;
  }
}

// Scores in the hundreds: only the largest count, and no number overflows.
TEST(AttendBatch, LargeScores) {
  CaseSpec spec{.shape = {4, 2, 8, 8, 16}};
  spec.sequences = {{.q_len = 3, .kv_len = 200}};
  spec.options.score = [](auto score, auto, auto, auto, auto kv) {
    return score + 500.0f - to_float(kv % 64) * 16.0f;
  };
  AttentionCase c(spec);
  EXPECT_TRUE(c.matches(c.run()));
  spec.options.score = [](auto score, auto, auto, auto, auto kv) {
    return score - 500.0f + to_float(kv % 64) * 16.0f;
  };
  AttentionCase low(spec);
  EXPECT_TRUE(low.matches(low.run()));
}

// With q = 0 every key counts the same: the LSE is the natural log of their number, and O the mean.
TEST(AttendBatch, LogSumExpIsNatural) {
  CaseSpec spec{.shape = {2, 1, 8, 8, 4}};
  spec.sequences = {
      {.q_len = 1, .kv_len = 1}, {.q_len = 1, .kv_len = 10}, {.q_len = 1, .kv_len = 777}};
  spec.options.scale = 0.0f;
  AttentionCase c(spec);
  const CaseResult result = c.run();
  for (std::int64_t h = 0; h < 2; ++h) {
    EXPECT_EQ(result.lse.at(0, h), 0.0f);
    EXPECT_NEAR(result.lse.at(1, h), std::log(10.0), 1e-6);
    EXPECT_NEAR(result.lse.at(2, h), std::log(777.0), 1e-6);
  }
}

// A rank with the heads from 4 on: mods get the heads' numbers in the model.
TEST(AttendBatch, ModsSeeGlobalHeads) {
  CaseSpec spec;
  spec.sequences = {{.q_len = 5, .kv_len = 60}};
  spec.options.first_head = 4;
  spec.options.score = mods::alibi(8);
  spec.options.mask = [](auto, auto h, auto q, auto kv) { return q - kv <= 3 * h; };
  AttentionCase c(spec);
  EXPECT_TRUE(c.matches(c.run()));
}

}  // namespace
}  // namespace kvmesh::test
