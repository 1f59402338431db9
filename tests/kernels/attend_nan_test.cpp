// A NaN that a row sees reaches that row, and no other.
#include "tests/support/attention_case.hpp"

namespace kvmesh::test {
namespace {

constexpr int kHeads = 4;

CaseSpec three_sequences(const MaskMod& mask, int dim) {
  CaseSpec spec{.shape = {kHeads, 2, dim, dim, 16}};
  spec.sequences = {
      {.q_len = 30, .kv_len = 130}, {.q_len = 40, .kv_len = 90}, {.q_len = 1, .kv_len = 70}};
  spec.options.mask = mask;
  return spec;
}

using Poison = void (AttentionCase::*)(std::size_t, std::int64_t);

// Poisons one position of the second sequence and expects NaN in the rows that see it.
void expect_contained(const CaseSpec& spec, Poison poison, std::int32_t position) {
  AttentionCase c(spec);
  (c.*poison)(1, position);
  const auto sees = [&](std::int64_t token, std::int32_t head) {
    if (token < 30 || token >= 70) return false;
    return spec.options.mask(1, head, c.position_of(1, token), position);
  };
  EXPECT_TRUE(c.matches(c.run(), sees)) << "position " << position;
}

class AttendNan : public testing::TestWithParam<int> {};

TEST_P(AttendNan, InAKey) {
  for (const MaskMod& mask :
       {mods::no_mask(), mods::causal(), mods::sliding_window(1), mods::sliding_window(20)}) {
    for (std::int32_t position : {0, 49, 50, 55, 63, 64, 89}) {
      expect_contained(three_sequences(mask, GetParam()), &AttentionCase::poison_key, position);
    }
  }
}

TEST_P(AttendNan, InAValue) {
  for (const MaskMod& mask :
       {mods::no_mask(), mods::causal(), mods::sliding_window(1), mods::sliding_window(20)}) {
    for (std::int32_t position : {0, 49, 50, 55, 63, 64, 89}) {
      expect_contained(three_sequences(mask, GetParam()), &AttentionCase::poison_value, position);
    }
  }
}

TEST_P(AttendNan, UnderAMaskOfEachHead) {
  const MaskMod mask = [](auto, auto h, auto q, auto kv) { return (q + h + kv) % 3 == 0; };
  for (std::int32_t position : {0, 55, 64}) {
    expect_contained(three_sequences(mask, GetParam()), &AttentionCase::poison_key, position);
    expect_contained(three_sequences(mask, GetParam()), &AttentionCase::poison_value, position);
  }
}

// The same if a score mod hides the key.
TEST_P(AttendNan, BehindAScoreOfMinusInfinity) {
  CaseSpec spec = three_sequences(mods::no_mask(), GetParam());
  constexpr float kHidden = -std::numeric_limits<float>::infinity();
  spec.options.score = [](auto score, auto, auto, auto q, auto kv) {
    return where(q >= kv, score, kHidden);
  };
  for (Poison poison : {&AttentionCase::poison_key, &AttentionCase::poison_value}) {
    AttentionCase c(spec);
    (c.*poison)(1, 60);
    const auto sees = [&](std::int64_t token, std::int32_t) {
      return token >= 30 && token < 70 && c.position_of(1, token) >= 60;
    };
    EXPECT_TRUE(c.matches(c.run(), sees));
  }
}

// The dims use both ways to load rows: as whole vectors, and not.
INSTANTIATE_TEST_SUITE_P(Kernels, AttendNan, testing::Values(32, 20),
                         testing::PrintToStringParamName());

// A row whose only key is NaN is not a row without keys.
TEST(AttendNan, OfTheOnlyKeyReachesTheOutput) {
  CaseSpec spec{.shape = {1, 1, 16, 16, 16}};
  spec.sequences = {{.q_len = 1, .kv_len = 1}, {.q_len = 3, .kv_len = 3}};
  spec.options.mask = mods::sliding_window(1);
  AttentionCase c(spec);
  c.poison_key(0, 0);
  c.poison_key(1, 1);
  const CaseResult result = c.run();
  EXPECT_TRUE(
      c.matches(result, [](std::int64_t token, std::int32_t) { return token == 0 || token == 2; }));
  EXPECT_TRUE(std::isnan(result.lse.at(0, 0)));
  EXPECT_TRUE(std::isnan(result.lse.at(2, 0)));
}

// The second query sees no key of the later splits, whose rows are empty beside its NaN.
TEST(AttendNan, InTheOnlySplitThatIsSeen) {
  CaseSpec spec{.shape = {2, 1, 16, 16, 16}};
  spec.sequences = {{.q_len = 2, .kv_len = 5000}};
  spec.positions = {4999, 5};
  AttentionCase c(spec);
  c.poison_key(0, 0);
  const CaseResult result = c.run(2);
  EXPECT_TRUE(c.matches(result, [](auto, auto) { return true; }));
  for (int token = 0; token < 2; ++token) EXPECT_TRUE(std::isnan(result.lse.at(token, 0))) << token;
}

// A NaN of a split stays NaN when the splits are merged.
TEST(AttendNan, InOneSplitOfMany) {
  CaseSpec spec{.shape = {2, 1, 16, 16, 16}};
  spec.sequences = {{.q_len = 1, .kv_len = 5000}, {.q_len = 1, .kv_len = 3000}};
  for (std::int64_t position : {0, 2500, 4999}) {
    AttentionCase c(spec);
    c.poison_key(0, position);
    EXPECT_TRUE(c.matches(c.run(2), [](std::int64_t token, std::int32_t) { return token == 0; }));
  }
}

}  // namespace
}  // namespace kvmesh::test
