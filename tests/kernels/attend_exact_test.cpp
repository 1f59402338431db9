// Attention in reproducible mode: a row's bits depend on its keys alone.
#include <fmt/format.h>

#include <algorithm>

#include "kernels/exact_attention.hpp"
#include "tests/support/exact_case.hpp"
#include "tests/support/instruction_sets.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

ExactResult attend(AttentionCase& c, const AttentionBatch& batch, int threads = 1) {
  ExactAttention attention(c.spec().shape, batch, c.spec().options);
  ExactResult result(c.spec().shape, c.tokens());
  ThreadPool pool(threads);
  attention.attend(c.q(), c.pool(), result.rows(), pool);
  return result;
}

class AttendExact : public OnInstructionSet {};

TEST_P(AttendExact, MatchesFloat64WithAnyPages) {
  for (Dtype dtype : kDtypes) {
    for (int page_size : {1, 5, 8, 16, 48}) {
      AttentionCase c(three_sequences(page_size, dtype));
      EXPECT_TRUE(c.matches(finished(c, attend(c, c.batch())))) << name(dtype) << page_size;
    }
  }
}

TEST_P(AttendExact, BitsDoNotDependOnPlacement) {
  Random random(seed_or(11));
  for (int page_size : {5, 16}) {
    AttentionCase c(three_sequences(page_size, Dtype::kBFloat16));
    const ExactResult whole = attend(c, c.batch());
    EXPECT_EQ(attend(c, c.batch(), 3), whole);
    for (int ranks : {2, 3, 8}) {
      std::vector<ExactResult> parts;
      for (const AttentionBatch& mine : dealt(c.batch(), ranks, random)) {
        parts.push_back(attend(c, mine));
      }
      std::ranges::reverse(parts);
      for (int i = 1; i < ranks; ++i) parts[0].merge(parts[static_cast<std::size_t>(i)]);
      EXPECT_EQ(parts[0], whole) << ranks << " ranks, pages of " << page_size;
    }
  }
}

TEST_P(AttendExact, NanStaysInItsRow) {
  for (const bool in_key : {true, false}) {
    CaseSpec spec = three_sequences(16, Dtype::kFloat16);
    spec.options.score = {};
    spec.options.mask = mods::sliding_window(3);
    AttentionCase c(spec);
    in_key ? c.poison_key(0, 328) : c.poison_value(0, 328);
    const auto sees = [&](std::int64_t token, std::int32_t) {
      return token < 9 && c.position_of(0, token) >= 328 && c.position_of(0, token) < 331;
    };
    EXPECT_TRUE(c.matches(finished(c, attend(c, c.batch())), sees)) << (in_key ? "key" : "value");
  }
}

// Scores far beyond the exponents of a float32, and weights that make all others 0.
TEST_P(AttendExact, TakesScoresOfAnySize) {
  for (float size : {80.0f, 3000.0f, 1e6f, 1e9f, 1e30f}) {
    CaseSpec spec{.shape = {2, 1, 16, 16, 16}};
    spec.sequences = {{.q_len = 3, .kv_len = 90}};
    spec.options.mask = mods::causal();
    // Every third key wins; or all are equal, and far below 0.
    spec.options.score = ScoreMod([size](auto, auto, auto h, auto, auto kv) {
      return where(h == 0, where(kv % 3 == 0, size, 0.0f), -size);
    });
    AttentionCase c(spec);
    EXPECT_TRUE(c.matches(finished(c, attend(c, c.batch())))) << size;
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttendExact, testing::ValuesIn(instruction_sets()),
                         instruction_set_name);

TEST(ExactAttention, RejectsSequencesWhoseSumsMayOverflow) {
  EXPECT_EQ(longest_exact_sequence(16), std::int64_t{1} << 28);
  EXPECT_EQ(longest_exact_sequence(3), std::int64_t{1} << 24);
  const AttentionBatch batch{.q_indptr = {0, 1},
                             .kv_lens = {(std::int64_t{1} << 24) + 1},
                             .q_positions = {},
                             .page_indptr = {0, 0},
                             .pages = {}};
  EXPECT_THROW(ExactAttention({1, 1, 8, 8, 3}, batch, {}), InvalidArgument);
  EXPECT_NO_THROW(ExactAttention({1, 1, 8, 8, 16}, batch, {}));
}

}  // namespace
}  // namespace kvmesh::test
