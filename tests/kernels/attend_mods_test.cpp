// Score mods and mask mods through the kernel.
#include <fmt/format.h>

#include <set>

#include "tests/support/attention_case.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

struct NamedMask {
  const char* name;
  MaskMod mask;
};
struct NamedScore {
  const char* name;
  ScoreMod score;
};

const Buffer<std::int32_t> kDocuments = [] {
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 500; ++i) ids.push_back(i < 60 ? 0 : i < 61 ? 1 : i < 190 ? 2 : 3);
  return Buffer<std::int32_t>(ids);
}();
const Buffer<std::int32_t> kWindows({1, 5, 17, 64, 65, 100, 3, 2});  // [q_heads]

const NamedMask kMasks[] = {
    {"none", mods::no_mask()},
    {"causal", mods::causal()},
    {"window1", mods::sliding_window(1)},
    {"window50", mods::sliding_window(50)},
    {"prefix", mods::prefix_lm(70)},
    {"prefix_per_row", mods::prefix_lm(Buffer<std::int32_t>({0, 33, 200}))},
    {"documents", mods::documents(kDocuments)},
    {"causal_documents", mods::mask_and(mods::causal(), mods::documents(kDocuments))},
    {"window_or_first", mods::mask_or(mods::sliding_window(20), mods::prefix_lm(4))},
    {"not_causal", !mods::causal()},
    {"per_row", [](auto b, auto, auto q, auto kv) { return q - kv < 10 * (b + 1); }},
    // Heads of one group differ: some see a page in full, some in part, some not at all.
    {"per_head", [](auto, auto h, auto q, auto kv) { return q >= kv && q - kv < kWindows[h]; }},
    {"one_head_only", [](auto, auto h, auto, auto) { return h == 2; }},
    {"stripes", [](auto, auto h, auto q, auto kv) { return (q + 2 * h - kv) % 7 < 3; }},
};

const Buffer<float> kBias(Random(5).reals(8 * 41), 41);   // [q_heads][distance]
const Buffer<float> kPositionBias(Random(6).reals(500));  // [kv]
const Buffer<float> kHeadScale({0.5f, 1.5f, -1.0f, 2.0f, 0.0f, 0.25f, 1.0f, 3.0f});

const NamedScore kScores[] = {
    {"identity", ScoreMod()},
    {"alibi", mods::alibi(8)},
    {"soft_cap", mods::soft_cap(1.5f)},
    {"relative_bias", mods::relative_bias(kBias, 20)},
    {"squared", [](auto score, auto, auto, auto, auto) { return score * score; }},
    {"position_bias", [](auto s, auto, auto, auto, auto kv) { return s + kPositionBias[kv]; }},
    {"head_scale", [](auto s, auto, auto h, auto, auto) { return s * kHeadScale[h]; }},
    {"row_offset", [](auto s, auto b, auto, auto q, auto) { return s + to_float(b * 3 - q); }},
    {"capped_alibi", mods::compose(mods::alibi(8), mods::soft_cap(4.0f))},
    {"constant", [](auto, auto, auto, auto, auto) { return 0.25f; }},
};

class AttendMods : public testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(AttendMods, MatchFloat64) {
  CaseSpec spec{.shape = {8, 2, 24, 24, 16}, .dtype = Dtype::kFloat16};
  spec.sequences = {
      {.q_len = 20, .kv_len = 200}, {.q_len = 1, .kv_len = 97}, {.q_len = 3, .kv_len = 450}};
  spec.options.mask = kMasks[std::get<0>(GetParam())].mask;
  spec.options.score = kScores[std::get<1>(GetParam())].score;
  AttentionCase c(spec);
  EXPECT_TRUE(c.matches(c.run()));
}

// Every mask with two scores, every score with two masks.
std::vector<std::tuple<int, int>> pairs() {
  std::vector<std::tuple<int, int>> all;
  for (int mask = 0; mask < static_cast<int>(std::size(kMasks)); ++mask) {
    for (int score = 0; score < static_cast<int>(std::size(kScores)); ++score) {
      if (score == 0 || score == 3 || mask == 0 || mask == 11) all.emplace_back(mask, score);
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttendMods, testing::ValuesIn(pairs()), [](const auto& param) {
  return fmt::format("{}_{}", kMasks[std::get<0>(param.param)].name,
                     kScores[std::get<1>(param.param)].name);
});

// A captured buffer that changes between two steps changes the next step.
TEST(AttendMods, ReadsCapturedBuffersAtEachRun) {
  Buffer<float> slope({0.0f});
  CaseSpec spec;
  spec.sequences = {{.q_len = 2, .kv_len = 50}};
  spec.options.score = [slope](auto score, auto, auto, auto, auto kv) {
    return score + slope[Expr(0)] * to_float(kv);
  };
  AttentionCase c(spec);
  AttentionPlan plan(spec.shape, c.batch(), spec.options);
  ThreadPool threads(1);
  std::set<float> outputs;
  for (float value : {0.0f, 0.1f, -0.3f}) {
    slope.set(0, value);
    CaseResult result = c.outputs();
    plan.attend_partial(c.q(), c.pool(), c.partial(result), threads);
    EXPECT_TRUE(c.matches(result)) << value;
    outputs.insert(result.o.at(0, 0, 0));
  }
  EXPECT_EQ(outputs.size(), 3u);
}

// The positions of keys are those of the sequence, whatever pages this rank has.
TEST(AttendMods, PositionsAreGlobalOnARankWithSomePages) {
  CaseSpec spec{.shape = {8, 2, 24, 24, 16}};
  spec.sequences = {{.q_len = 9, .kv_len = 200, .local = std::vector<std::int32_t>{1, 2, 6, 9, 12}},
                    {.q_len = 2, .kv_len = 90, .local = std::vector<std::int32_t>{4}}};
  for (const auto& [mask_name, mask] : kMasks) {
    for (int score : {0, 1, 3}) {
      spec.options.mask = mask;
      spec.options.score = kScores[score].score;
      AttentionCase c(spec);
      EXPECT_TRUE(c.matches(c.run())) << mask_name << ", " << kScores[score].name;
    }
  }
}

}  // namespace
}  // namespace kvmesh::test
