// Steps planned in place, beside separately planned steps.
#include <vector>

#include "tests/runtime/cache/cache_fixture.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

constexpr std::int64_t kRoom = 12;  // tokens of the tensors

CacheOptions wide_cache() {
  CacheOptions options = small_cache_options();
  options.pages_per_rank = 64;
  options.home_threshold_tokens = 8;
  return options;
}

struct Rows {
  std::vector<float> q = std::vector<float>(kRoom * 4 * 8);
  std::vector<float> k = std::vector<float>(kRoom * 2 * 8);
  std::vector<float> v = std::vector<float>(kRoom * 2 * 6);

  explicit Rows(Random& random) {
    for (std::vector<float>* rows : {&q, &k, &v}) {
      for (float& number : *rows) number = 2 * random.real() - 1;
    }
  }
  LayerInput input(std::int64_t queries, std::int64_t appended) const {
    return {tensor(q.data(), {queries, 4, 8}), tensor(k.data(), {appended, 2, 8}),
            tensor(v.data(), {appended, 2, 6})};
  }
};

struct Result {
  std::vector<float> o = std::vector<float>(kRoom * 4 * 6, -1.0f);
  std::vector<float> lse = std::vector<float>(kRoom * 4, -1.0f);

  void run(StepPlan& step, const Rows& rows) {
    const std::int64_t n = step.query_tokens();
    step.run(1, rows.input(n, step.append_tokens()),
             {tensor(o.data(), {n, 4, 6}), tensor(lse.data(), {n, 4})});
  }
  bool equals(const Result& other, std::int64_t tokens) const {
    const auto same = [&](const std::vector<float>& a, const std::vector<float>& b,
                          std::int64_t row) {
      return std::equal(a.begin(), a.begin() + tokens * row, b.begin());
    };
    return same(o, other.o, 4 * 6) && same(lse, other.lse, 4);
  }
};

/// Serves two caches alike, one by separate plans for each step, one by one plan that is replanned.
void serve(Mesh& mesh, const PlanOptions& options, std::uint64_t seed) {
  Random random(seed);
  KvCache fresh(mesh, wide_cache()), again(mesh, wide_cache());
  StepPlan step = again.plan({}, options);
  std::vector<SequenceId> living, twins;  // in `fresh`, in `again`
  for (int turn = 0; turn < 60; ++turn) {
    if (std::ssize(living) < 4 && random.coin()) {
      living.push_back(fresh.create());
      twins.push_back(again.create());
    }
    if (std::ssize(living) > 2 && random.one_in(10)) {
      fresh.erase(living.front());
      again.erase(twins.front());
      living.erase(living.begin());
      twins.erase(twins.begin());
    }
    std::vector<BatchEntry> batch, twin_batch;
    std::int64_t tokens = 0;
    for (std::size_t s = 0; s < living.size(); ++s) {
      if (random.one_in(4)) continue;
      const std::int64_t appended = random.integer(0, 3);
      const std::int64_t length = fresh.allocator().length(living[s]) + appended;
      batch.push_back({living[s], appended, std::min(length, random.integer(0, 3))});
      twin_batch.push_back({twins[s], appended, batch.back().query_tokens});
      tokens += batch.back().query_tokens;
    }
    const Rows rows(random);
    Result expected, result;
    PlanOptions alone = options;
    alone.limits.reset();
    StepPlan plan = fresh.plan(batch, alone);
    expected.run(plan, rows);
    again.replan(step, twin_batch);
    result.run(step, rows);
    ASSERT_TRUE(result.equals(expected, tokens)) << "turn " << turn << " seed " << seed;
  }
}

TEST(Replan, EqualsSeparatePlans) {
  const std::uint64_t seed = seed_or(std::random_device{}());
  for (int ranks : {1, 3}) {
    run_on_threads(ranks, [&](Mesh& mesh) { serve(mesh, {}, seed); });
  }
}

TEST(Replan, WithLimitsEqualsSeparatePlans) {
  const std::uint64_t seed = seed_or(std::random_device{}());
  for (int ranks : {1, 3}) {
    run_on_threads(ranks, [&](Mesh& mesh) {
      serve(mesh, {.limits = StepLimits{.sequences = 4, .query_tokens = 3}}, seed);
    });
  }
}

TEST(Replan, WithLimitsGivesTensorsOneSize) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  KvCache cache(mesh, wide_cache());
  StepPlan step = cache.plan({}, {.limits = StepLimits{.sequences = 4, .query_tokens = 3}});
  EXPECT_EQ(step.query_tokens(), 12);
  EXPECT_EQ(step.append_tokens(), 12);
  const std::vector<BatchEntry> batch{{cache.create(), 1}};
  cache.replan(step, batch);
  EXPECT_EQ(step.query_tokens(), 12);
  EXPECT_EQ(step.tokens_of_output().size(), 12);
  EXPECT_GT(step.workspace_bytes(), 0);
}

// Neither the lists of a decode step nor their memory grow with the pages.
TEST(Replan, MemoryDoesNotGrowWithPages) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  CacheOptions options = small_cache_options();
  options.page_size = 1;
  options.pages_per_rank = 8192;
  KvCache cache(mesh, options);
  const SequenceId sequence = cache.create();
  StepPlan step = cache.plan({{sequence, 1}});
  const std::int64_t few = step.host_bytes();
  EXPECT_EQ(step.workspace_bytes(), few) << "the CPU's memory is the host's";
  cache.replan(step, std::vector<BatchEntry>{{sequence, 8000, 1}});
  cache.replan(step, std::vector<BatchEntry>{{sequence, 1}});
  EXPECT_LT(step.host_bytes(), few + 8000 * 8 + 64 * 1024) << "slots of the largest append";
  const std::int64_t held = step.host_bytes();
  for (int i = 0; i < 20; ++i) cache.replan(step, std::vector<BatchEntry>{{sequence, 1}});
  EXPECT_EQ(step.host_bytes(), held);
}

TEST(Replan, RejectsInvalidBatchesAndChangesNothing) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  KvCache cache(mesh, small_cache_options());
  StepPlan step = cache.plan({}, {.limits = StepLimits{.sequences = 2, .query_tokens = 9}});
  const SequenceId a = cache.create(), b = cache.create(), c = cache.create();
  const auto replan = [&](const std::vector<BatchEntry>& batch) {
    return [&cache, &step, batch] { cache.replan(step, batch); };
  };
  expect_refused<InvalidArgument>(cache, replan({{a, 1}, {b, 1}, {c, 1}}));
  expect_refused<InvalidArgument>(cache, replan({{a, 10}}));
  expect_refused<InvalidArgument>(cache, replan({{a, 1, 10}}));
  const std::vector<BatchEntry> full{{a, 9}, {b, 9}};  // of 6 pages of 4 tokens
  cache.replan(step, full);
  expect_refused<OutOfPages>(cache, replan(full));
  EXPECT_FALSE(cache.try_replan(step, full));
}

TEST(Replan, RejectsBatchesThatItsBlockMaskDoesNotFit) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  KvCache cache(mesh, wide_cache());
  const SequenceId a = cache.create(), b = cache.create(), c = cache.create();
  const BlockMask mask = cache.make_block_mask(
      mods::no_mask(), {.batch = 2, .q_len = 3, .kv_len = 8, .q_block = 1, .kv_block = 4});
  StepPlan step = cache.plan({{a, 1}, {b, 1}}, {.block_mask = &mask});
  const auto replan = [&](const std::vector<BatchEntry>& batch) {
    return [&cache, &step, batch] { cache.replan(step, batch); };
  };
  expect_refused<InvalidArgument>(cache, replan({{a, 1}, {b, 1}, {c, 1}}));
  expect_refused<InvalidArgument>(cache, replan({{a, 4}, {b, 1}}));
  expect_refused<InvalidArgument>(cache, replan({{a, 8, 1}, {b, 1}}));
  cache.replan(step, std::vector<BatchEntry>{{b, 3}, {c, 2}});
  EXPECT_EQ(step.query_tokens(), 5);
}

TEST(Replan, RejectsInvalidLimits) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  KvCache cache(mesh, small_cache_options());
  for (const StepLimits& limits :
       {StepLimits{.sequences = 0}, StepLimits{.sequences = 1, .query_tokens = 0},
        StepLimits{.sequences = 1, .pages = -1}}) {
    EXPECT_THROW(static_cast<void>(cache.plan({}, {.limits = limits})), InvalidArgument);
  }
}

}  // namespace
}  // namespace kvmesh::test
