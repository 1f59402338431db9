// Attention in reproducible mode: a row's bits depend on its keys alone.
#include "kernels/cpu/exact_attention.hpp"
#include "tests/support/exact_case.hpp"
#include "tests/support/instruction_sets.hpp"

namespace kvmesh::test {
namespace {

ExactResult attend(AttentionCase& c, const AttentionBatch& batch, int threads = 1) {
  ExactAttention attention(c.spec().shape, batch, c.spec().options);
  ExactResult result(c.spec().shape, c.tokens());
  ThreadPool pool(threads);
  attention.attend(c.q(), c.pool(), result.rows(), pool);
  return result;
}

CaseResult outputs(AttentionCase& c) { return finished(c, attend(c, c.batch())); }

class AttendExact : public OnInstructionSet {};

TEST_P(AttendExact, MatchesFloat64WithAnyPages) {
  for (Dtype dtype : kDtypes) {
    for (int page_size : {1, 5, 8, 16, 48}) {
      AttentionCase c(three_sequences(page_size, dtype));
      EXPECT_TRUE(c.matches(outputs(c))) << name(dtype) << page_size;
    }
  }
}

TEST_P(AttendExact, BitsDoNotDependOnPlacement) {
  expect_bits_of_any_placement(
      [](AttentionCase& c, const AttentionBatch& batch) { return attend(c, batch); });
}

TEST_P(AttendExact, BitsDoNotDependOnThreads) {
  for (const int page_size : {5, 16}) {
    AttentionCase c(three_sequences(page_size, Dtype::kBFloat16));
    EXPECT_EQ(attend(c, c.batch(), 3), attend(c, c.batch())) << page_size;
  }
}

/// Forks read their common pages each for itself: a partial of several has other bits.
TEST_P(AttendExact, ForksMatchFloat64) {
  CaseSpec spec{.shape = {8, 2, 16, 16, 16}};
  spec.options.mask = mods::causal();
  spec.sequences = {{.q_len = 1, .kv_len = 430}};
  for (std::int64_t own : {0, 5, 20}) {
    spec.sequences.push_back(
        {.q_len = 1, .kv_len = 25 * 16 + own, .prefix = {.of = 0, .pages = 25}});
  }
  AttentionCase c(spec);
  EXPECT_TRUE(c.matches(outputs(c)));
}

TEST_P(AttendExact, NanStaysInItsRow) { expect_nan_stays_in_its_row(outputs); }

TEST_P(AttendExact, TakesScoresOfAnySize) { expect_scores_of_any_size(Dtype::kFloat32, outputs); }

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
