// The validity of a plan: until its own sequences change, and no longer than its cache.
#include <optional>

#include "tests/runtime/cache/cache_fixture.hpp"

namespace kvmesh::test {
namespace {

// Room for two tokens of small_cache_options().
struct TwoTokens {
  std::vector<float> q = std::vector<float>(2 * 4 * 8, 0.5f);
  std::vector<float> k = std::vector<float>(2 * 2 * 8, 0.25f);
  std::vector<float> v = std::vector<float>(2 * 2 * 6, 3.0f);
  std::vector<float> o = std::vector<float>(2 * 4 * 6, -1.0f);
  std::vector<float> lse = std::vector<float>(2 * 4, -1.0f);

  LayerInput input(const StepPlan& step) const {
    return {tensor(q.data(), {step.query_tokens(), 4, 8}),
            tensor(k.data(), {step.append_tokens(), 2, 8}),
            tensor(v.data(), {step.append_tokens(), 2, 6})};
  }
  CombineOutput output(const StepPlan& step) {
    return {tensor(o.data(), {step.query_tokens(), 4, 6}),
            tensor(lse.data(), {step.query_tokens(), 4})};
  }
  void run(StepPlan& step) { step.run(0, input(step), output(step)); }
};

class StalePlan : public testing::Test {
 protected:
  StalePlan() {
    fill(cache_, a_, 5);
    fill(cache_, b_, 3);
  }

  void expect_good(StepPlan& step) {
    EXPECT_NO_THROW(rows_.run(step));
    const Partial partial{rows_.output(step).o, rows_.output(step).lse};
    EXPECT_NO_THROW(step.append(1, rows_.input(step).k, rows_.input(step).v));
    EXPECT_NO_THROW(step.attend_partial(1, rows_.input(step).q, partial));
  }
  void expect_stale(StepPlan& step) {
    const LayerInput input = rows_.input(step);
    const CombineOutput output = rows_.output(step);
    const Partial partial{output.o, output.lse};
    const auto refuse = [&](const auto& call) { expect_refused<InvalidArgument>(cache_, call); };
    refuse([&] { step.run(0, input, output); });
    refuse([&] { step.append(0, input.k, input.v); });
    refuse([&] { step.attend_partial(0, input.q, partial); });
    refuse([&] { step.combine(partial, output); });
    refuse([&] { step.gather_queries(0, input.q, output.o); });
  }

  Mesh mesh_{make_single_communicator(), {.threads = 1}};
  KvCache cache_{mesh_, small_cache_options()};
  SequenceId a_ = cache_.create(), b_ = cache_.create();
  TwoTokens rows_;
};

TEST_F(StalePlan, IsRefusedAfterItsPagesWentToAnotherSequence) {
  StepPlan first = cache_.plan({{a_, 2}});
  cache_.erase(a_);
  const SequenceId heir = cache_.create();
  fill(cache_, heir, 7);  // in the pages that were a's
  expect_stale(first);
}

TEST_F(StalePlan, IsRefusedAfterAnAppend) {
  StepPlan step = cache_.plan({{a_, 1}, {b_, 1}});
  static_cast<void>(cache_.plan({{b_, 1}}));
  expect_stale(step);
}

TEST_F(StalePlan, IsRefusedAfterATruncation) {
  StepPlan step = cache_.plan({{a_, 2}});
  cache_.truncate(a_, 6);
  expect_stale(step);
}

TEST_F(StalePlan, IsRefusedAfterACopyOnWriteOfItsOwnPage) {
  const SequenceId child = cache_.fork(a_);
  StepPlan step = cache_.plan({{child, 0, 1}});
  static_cast<void>(cache_.plan({{child, 1}}));  // takes a page of its own
  expect_stale(step);
}

TEST_F(StalePlan, IsValidAfterAReplan) {
  StepPlan step = cache_.plan({{a_, 1}});
  cache_.erase(a_);
  expect_stale(step);
  cache_.replan(step, std::vector<BatchEntry>{{b_, 1}});
  expect_good(step);
}

TEST_F(StalePlan, StaysValidWhileOtherSequencesChange) {
  StepPlan step = cache_.plan({{a_, 2}});
  static_cast<void>(cache_.plan({{b_, 1}}));
  cache_.truncate(b_, 1);
  cache_.erase(b_);
  fill(cache_, cache_.create(), 5);
  cache_.fork(a_);
  expect_good(step);
}

TEST_F(StalePlan, StaysValidWhileItsContentIsUnchanged) {
  cache_.reserve(a_, 8);
  StepPlan step = cache_.plan({{a_, 0, 1}});
  cache_.truncate(a_, 5);  // gives back what was only reserved
  cache_.reserve(a_, 8);
  expect_good(step);
}

TEST_F(StalePlan, PlansOfOneStepCoexist) {
  StepPlan appends = cache_.plan({{a_, 1}, {b_, 1}});
  StepPlan attends = cache_.plan({{a_, 0, 1}, {b_, 0, 1}}, {.mask = mods::sliding_window(2)});
  rows_.run(appends);
  const std::vector<float> all = rows_.o;
  rows_.run(attends);
  expect_good(appends);
  expect_good(attends);
  StepPlan next = cache_.plan({{a_, 1}});
  expect_stale(appends);
  expect_stale(attends);
  expect_good(next);
}

TEST_F(StalePlan, ReportsParticipationOnlyWhileValid) {
  StepPlan step = cache_.plan({{a_, 1}}, {.limits = StepLimits{.sequences = 1}});
  cache_.erase(a_);
  EXPECT_THROW(static_cast<void>(step.participation()), InvalidArgument);
}

TEST_F(StalePlan, ReplanRejectsPlansOfAnotherCache) {
  KvCache other(mesh_, small_cache_options());
  StepPlan step = cache_.plan({{a_, 1}});
  const std::vector<BatchEntry> batch{{other.create(), 1}};
  expect_refused<InvalidArgument>(other, [&] { other.replan(step, batch); });
  expect_good(step);
}

TEST_F(StalePlan, RejectsEveryCallAfterItsCacheEnded) {
  std::optional<KvCache> cache(std::in_place, mesh_, small_cache_options());
  StepPlan step = cache->plan({{cache->create(), 1}});
  const LayerInput input = rows_.input(step);
  const CombineOutput output = rows_.output(step);
  const Partial partial{output.o, output.lse};
  cache.reset();
  const auto refuse = [](const auto& call) { EXPECT_THROW(call(), InvalidArgument); };
  refuse([&] { step.run(0, input, output); });
  refuse([&] { step.append(0, input.k, input.v); });
  refuse([&] { step.attend_partial(0, input.q, partial); });
  refuse([&] { step.combine(partial, output); });
  refuse([&] { step.gather_queries(0, input.q, output.o); });
  refuse([&] { static_cast<void>(step.participation()); });
  refuse([&] { static_cast<void>(step.tiles()); });
  refuse([&] { static_cast<void>(step.workspace_bytes()); });
  refuse([&] { static_cast<void>(step.generation()); });
  refuse([&] { static_cast<void>(step.heads_of_output()); });
  refuse([&] { cache_.replan(step, {}); });
  EXPECT_EQ(step.query_tokens(), 1);
}

TEST_F(StalePlan, RejectsCallsAfterAMove) {
  StepPlan step = cache_.plan({{a_, 1}});
  StepPlan moved = std::move(step);
  EXPECT_THROW(static_cast<void>(step.query_tokens()), InvalidArgument);
  EXPECT_THROW(cache_.replan(step, {}), InvalidArgument);
  expect_good(moved);
}

TEST_F(StalePlan, IsValidInAMovedCache) {
  StepPlan step = cache_.plan({{a_, 1}});
  KvCache moved = std::move(cache_);
  rows_.run(step);
  moved.replan(step, std::vector<BatchEntry>{{a_, 1}});
  rows_.run(step);
  EXPECT_EQ(moved.allocator().length(a_), 7);
  cache_ = std::move(moved);
}

// The cache has its own share of the mesh.
TEST(MovedMesh, CachesStayUsable) {
  std::optional<Mesh> mesh(std::in_place, make_single_communicator(), MeshOptions{.threads = 2});
  KvCache cache(*mesh, small_cache_options());
  const SequenceId sequence = cache.create();
  StepPlan step = cache.plan({{sequence, 1}});
  TwoTokens rows;
  std::optional<Mesh> moved(std::move(*mesh));
  EXPECT_THROW(KvCache(*mesh, small_cache_options()), InvalidArgument) << "nothing is left in it";
  mesh.reset();
  rows.run(step);
  fill(cache, sequence, 3);
  KvCache another(*moved, small_cache_options());
  moved.reset();
  fill(cache, sequence, 3);
  cache.check_replicas();
  EXPECT_EQ(cache.mesh().size(), 1);
}

}  // namespace
}  // namespace kvmesh::test
