// Splits: over threads and over ranks, and their merge.
#include <fmt/format.h>

#include "tests/support/attention_case.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

CaseSpec one_long_sequence(Dtype dtype, std::int64_t q_len) {
  CaseSpec spec{.shape = {1, 1, 32, 32, 16}, .dtype = dtype};
  spec.sequences = {{.q_len = q_len, .kv_len = 5000}};
  spec.options.mask = mods::causal();
  return spec;
}

TEST(AttendSplit, BitsDoNotDependOnThreads) {
  for (Dtype dtype : kDtypes) {
    for (std::int64_t q_len : {1, 7}) {
      AttentionCase c(one_long_sequence(dtype, q_len));
      const CaseResult one = c.run(1);
      EXPECT_TRUE(c.matches(one)) << name(dtype);
      for (int threads : {2, 3, 8}) {
        const CaseResult many = c.run(threads);
        EXPECT_EQ(many.o, one.o) << threads << " threads";
        EXPECT_EQ(many.lse, one.lse) << threads << " threads";
      }
    }
  }
}

// One sequence and one head still make work for many threads.
TEST(AttendSplit, SplitsOneLongSequence) {
  AttentionCase c(one_long_sequence(Dtype::kFloat32, 1));
  EXPECT_GT(AttentionPlan(c.spec().shape, c.batch(), c.spec().options).workspace_bytes(),
            4 * 32 * 4);
  CaseSpec spec = one_long_sequence(Dtype::kFloat32, 1);
  spec.sequences = {{.q_len = 1, .kv_len = 100}};
  AttentionCase short_one(spec);
  // Lists alone: no partial of a split.
  EXPECT_LT(AttentionPlan(spec.shape, short_one.batch(), spec.options).workspace_bytes(),
            4 * 32 * 4);
}

// A sequence's bits do not depend on the rest of the batch.
TEST(AttendSplit, BitsDoNotDependOnTheRestOfTheBatch) {
  CaseSpec spec = one_long_sequence(Dtype::kBFloat16, 2);
  AttentionCase alone(spec);
  spec.sequences.push_back({.q_len = 3, .kv_len = 70});
  AttentionCase both(spec);
  AttentionBatch first = both.batch();
  first.kv_lens.pop_back();
  first.q_indptr.pop_back();
  first.page_indptr.pop_back();
  first.pages.resize(static_cast<std::size_t>(first.page_indptr.back()));
  CaseResult in_batch = both.run(2);
  AttentionPlan plan(spec.shape, first, spec.options);
  CaseResult result = alone.outputs();
  ThreadPool threads(1);
  ConstTensorView q = both.q();
  q.shape[0] = 2;
  plan.attend_partial(q, both.pool(), alone.partial(result), threads);
  for (std::int64_t t = 0; t < 2; ++t) {
    EXPECT_EQ(result.lse.at(t, 0), in_batch.lse.at(t, 0));
    for (std::int64_t d = 0; d < 32; ++d) EXPECT_EQ(result.o.at(t, 0, d), in_batch.o.at(t, 0, d));
  }
}

// Batches of the pages that `ranks` ranks would have.
std::vector<AttentionBatch> shares(const AttentionBatch& batch, int ranks, Random& random) {
  std::vector<AttentionBatch> all(static_cast<std::size_t>(ranks), batch);
  for (AttentionBatch& share : all) {
    share.pages.clear();
    share.page_indptr = {0};
  }
  for (std::size_t s = 0; s < batch.kv_lens.size(); ++s) {
    for (std::int64_t i = batch.page_indptr[s]; i < batch.page_indptr[s + 1]; ++i) {
      random.pick(std::vector<AttentionBatch*>{&all.front(), &all.back(), &all[all.size() / 2]})
          ->pages.push_back(batch.pages[static_cast<std::size_t>(i)]);
    }
    for (AttentionBatch& share : all) share.page_indptr.push_back(std::ssize(share.pages));
  }
  return all;
}

class AttendShares : public testing::TestWithParam<int> {};

TEST_P(AttendShares, MergedPartialsEqualAttentionOverAllKeys) {
  const std::uint64_t seed = seed_or(static_cast<std::uint64_t>(GetParam()));
  SCOPED_TRACE(fmt::format("run it again with KVMESH_SEED={}", seed));
  Random random(seed);
  CaseSpec spec{.shape = {4, 2, 40, 24, 5}, .dtype = Dtype::kBFloat16, .seed = seed};
  spec.sequences = {
      {.q_len = 9, .kv_len = 333}, {.q_len = 2, .kv_len = 4}, {.q_len = 1, .kv_len = 2200}};
  spec.options.mask = mods::mask_and(mods::causal(), [](auto, auto h, auto q, auto kv) {
    return q - kv < 40 || (kv + h) % 2 == 0;
  });
  spec.options.score = mods::soft_cap(3.0f);
  AttentionCase c(spec);
  const std::vector<AttentionBatch> parts = shares(c.batch(), GetParam(), random);
  CaseResult whole = c.run(parts[0], spec.options);
  for (std::size_t i = 1; i < parts.size(); ++i) {
    CaseResult part = c.run(parts[i], spec.options, 2);
    merge_into(c.partial(whole), c.partial(part));
  }
  EXPECT_TRUE(c.matches(whole));
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttendShares, testing::Values(2, 3, 8),
                         testing::PrintToStringParamName());

TEST(AttendSplit, PlanServesManyLayers) {
  CaseSpec spec;
  spec.sequences = {{.q_len = 2, .kv_len = 2500}};
  AttentionCase first(spec);
  spec.seed = 99;
  AttentionCase second(spec);  // other pages and numbers, same sizes
  AttentionPlan plan(spec.shape, first.batch(), spec.options);
  ThreadPool threads(2);
  const CaseResult alone = first.run();
  for (int layer = 0; layer < 3; ++layer) {
    CaseResult result = first.outputs();
    plan.attend_partial(first.q(), first.pool(), first.partial(result), threads);
    EXPECT_EQ(result.o, alone.o);
    EXPECT_EQ(result.lse, alone.lse);
    CaseResult other = first.outputs();
    plan.attend_partial(second.q(), first.pool(), first.partial(other), threads);
    EXPECT_NE(other.o, alone.o);
  }
}

}  // namespace
}  // namespace kvmesh::test
