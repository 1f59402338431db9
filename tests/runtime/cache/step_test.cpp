// One step: the properties of a plan, and the runs that it refuses.
#include <algorithm>
#include <numeric>

#include "tests/runtime/cache/cache_fixture.hpp"
#include "tests/support/ranks.hpp"

namespace kvmesh::test {
namespace {

// Two queries and two new tokens of one sequence, all sizes those of small_cache_options().
struct StepTensors {
  std::vector<float> q = std::vector<float>(2 * 4 * 8, 0.5f);
  std::vector<float> k = std::vector<float>(2 * 2 * 8, 0.25f);
  std::vector<float> v = std::vector<float>(2 * 2 * 6);
  std::vector<float> o = std::vector<float>(2 * 4 * 6, -1.0f);
  std::vector<float> lse = std::vector<float>(2 * 4, -1.0f);

  StepTensors() { std::iota(v.begin(), v.end(), 1.0f); }

  LayerInput input() const {
    return {tensor(q.data(), {2, 4, 8}), tensor(k.data(), {2, 2, 8}), tensor(v.data(), {2, 2, 6})};
  }
  CombineOutput output() { return {tensor(o.data(), {2, 4, 6}), tensor(lse.data(), {2, 4})}; }
};

class Step : public testing::Test {
 protected:
  Step() : sequence_(cache_.create()) {}
  StepPlan plan(const PlanOptions& options = {}) {
    const std::vector<BatchEntry> batch{{sequence_, 2}};
    return cache_.plan(batch, options);
  }

  Mesh mesh_{make_single_communicator(), {.threads = 1}};
  KvCache cache_{mesh_, small_cache_options()};
  SequenceId sequence_;
  StepTensors tensors_;
};

TEST_F(Step, RejectsLayerOutOfRange) {
  StepPlan step = plan();
  const Partial partial{tensors_.output().o, tensors_.output().lse};
  for (int layer : {-1, 2}) {
    const auto refuse = [&](const auto& call) { expect_refused<InvalidArgument>(cache_, call); };
    refuse([&] { step.run(layer, tensors_.input(), tensors_.output()); });
    refuse([&] { step.append(layer, tensors_.input().k, tensors_.input().v); });
    refuse([&] { step.attend_partial(layer, tensors_.input().q, partial); });
    refuse([&] { step.gather_queries(layer, tensors_.input().q, tensors_.output().o); });
  }
}

TEST_F(Step, RejectsTensorsOfOtherShapes) {
  StepPlan step = plan();
  const LayerInput good = tensors_.input();
  const auto refuse = [&](LayerInput input, CombineOutput output) {
    expect_refused<InvalidArgument>(cache_, [&] { step.run(0, input, output); });
    for (float o : tensors_.o) ASSERT_EQ(o, -1.0f) << "wrote before checking";
  };
  const float* q = tensors_.q.data();
  refuse({tensor(q, {1, 4, 8}), good.k, good.v}, tensors_.output());
  refuse({tensor(q, {2, 2, 8}), good.k, good.v}, tensors_.output());
  refuse({tensor(q, {2, 4, 6}), good.k, good.v}, tensors_.output());
  refuse({good.q, tensor(tensors_.k.data(), {1, 2, 8}), good.v}, tensors_.output());
  refuse({good.q, tensor(tensors_.k.data(), {2, 1, 8}), good.v}, tensors_.output());
  refuse({good.q, good.k, tensor(tensors_.v.data(), {2, 2, 5})}, tensors_.output());
  refuse({good.q, good.k, {}}, tensors_.output());
  refuse({good.q, good.k, good.v, tensor(tensors_.q.data(), {3})}, tensors_.output());
  refuse(good, {tensor(tensors_.o.data(), {2, 4, 5}), {}});
  refuse(good, {tensor(tensors_.o.data(), {1, 4, 6}), {}});
  refuse(good, {tensors_.output().o, tensor(tensors_.lse.data(), {2, 3})});

  step.run(0, good, tensors_.output());
  // All keys are equal, so the second query's output is the mean of the two values: of head 0,
  // 1 .. 6 and 13 .. 18.
  for (int d = 0; d < 6; ++d) {
    EXPECT_FLOAT_EQ(tensors_.o[static_cast<std::size_t>(d)], static_cast<float>(d + 1));
    EXPECT_FLOAT_EQ(tensors_.o[static_cast<std::size_t>(24 + d)], static_cast<float>(d + 7));
  }
}

TEST_F(Step, RejectsOutputsBeforeItAppends) {
  StepPlan step = plan();
  const auto refuse = [&](const CombineOutput& output) {
    expect_refused<InvalidArgument>(cache_, [&] { step.run(0, tensors_.input(), output); });
  };
  CombineOutput gaps = tensors_.output();
  gaps.o.strides = {2 * 4 * 6, 2 * 6, 2};
  refuse(gaps);
  CombineOutput integers = tensors_.output();
  integers.lse.dtype = Dtype::kBFloat16;
  refuse(integers);
}

TEST_F(Step, RejectsTensorsOfAnotherDevice) {
  StepPlan step = plan();
  const Device gpu{DeviceKind::kCuda, 0};
  const auto refuse = [&](const LayerInput& input, const CombineOutput& output) {
    expect_refused<InvalidArgument>(cache_, [&] { step.run(0, input, output); });
  };
  for (ConstTensorView LayerInput::*member :
       {&LayerInput::q, &LayerInput::k, &LayerInput::v, &LayerInput::sinks}) {
    LayerInput input = tensors_.input();
    input.sinks = tensor(tensors_.lse.data(), {4});
    (input.*member).device = gpu;
    refuse(input, tensors_.output());
  }
  for (TensorView CombineOutput::*member : {&CombineOutput::o, &CombineOutput::lse}) {
    CombineOutput output = tensors_.output();
    (output.*member).device = gpu;
    refuse(tensors_.input(), output);
  }
}

TEST_F(Step, RejectsAStrategyOfGpusBeforeItAppends) {
  expect_refused<InvalidArgument>(cache_, [&] { plan({.strategy = CombineStrategy::kAllReduce}); });
}

TEST_F(Step, ReportsTokenCounts) {
  fill(cache_, sequence_, 7);
  const std::vector<BatchEntry> batch{{sequence_, 2, 3}};
  const StepPlan step = cache_.plan(batch);
  EXPECT_EQ(step.query_tokens(), 3);
  EXPECT_EQ(step.append_tokens(), 2);
  EXPECT_EQ(step.tokens_of_output().size(), 3);
  EXPECT_EQ(step.heads_of_output().size(), 4);
  // Nine keys are three pages, for each of two kv heads; the last two have keys past a query.
  EXPECT_EQ(step.tiles().visited, 6);
  EXPECT_EQ(step.tiles().masked, 4);
}

TEST_F(Step, CanBePlannedAgainAfterTruncation) {
  StepPlan first = plan();
  for (int layer : {0, 1}) first.run(layer, tensors_.input(), tensors_.output());
  const std::vector<float> before = tensors_.o;
  cache_.truncate(sequence_, 0);
  StepPlan second = plan();
  second.run(1, tensors_.input(), tensors_.output());
  EXPECT_EQ(tensors_.o, before);
}

// A member of an engine that has planned no step yet.
TEST_F(Step, IsEmptyUntilPlanned) {
  StepPlan step;
  EXPECT_FALSE(step);
  EXPECT_THROW(step.run(0, tensors_.input(), tensors_.output()), InvalidArgument);
  EXPECT_THROW((void)cache_.try_replan(step, {{sequence_, 2}}), InvalidArgument);
  step = plan();
  EXPECT_TRUE(step);
  step.run(0, tensors_.input(), tensors_.output());
}

TEST_F(Step, EveryPlanCallTakesAList) {
  StepPlan step = cache_.plan({{sequence_, 2}});
  cache_.replan(step, {{sequence_, 1}});
  EXPECT_TRUE(cache_.try_replan(step, {{sequence_, 1}, {cache_.create(), 1}}));
  EXPECT_FALSE(cache_.try_plan({{sequence_, 1000}}));
  EXPECT_EQ(cache_.length(sequence_), 4);
  EXPECT_THROW((void)cache_.length(SequenceId{}), UnknownSequence);
}

TEST_F(Step, NeedsNoKeysIfNothingIsAppended) {
  plan().run(0, tensors_.input(), tensors_.output());
  const std::vector<float> expected = tensors_.o;
  std::ranges::fill(tensors_.o, -1.0f);
  StepPlan again = cache_.plan({{sequence_, 0, 2}});
  again.append(0, {}, {});
  again.run(0, {.q = tensors_.input().q, .k = {}, .v = {}}, tensors_.output());
  EXPECT_EQ(tensors_.o, expected);
  EXPECT_THROW(again.append(2, {}, {}), InvalidArgument);
  // With limits the next batch may append: a graph that captures this run must write it.
  StepPlan limited = cache_.plan({{sequence_, 0, 2}}, {.limits = StepLimits{1, 2}});
  expect_refused<InvalidArgument>(cache_, [&] {
    limited.run(0, {.q = tensors_.input().q, .k = {}, .v = {}}, tensors_.output());
  });
}

TEST(StepOnRanks, ScatterDividesTheOutput) {
  CacheOptions options = small_cache_options();
  options.home_threshold_tokens = 0;
  run_on_threads(3, [&](Mesh& mesh) {
    KvCache cache(mesh, options);
    const SequenceId sequence = cache.create();
    fill(cache, sequence, 20);
    const std::vector<BatchEntry> batch{{sequence, 0, 7}};
    const int me = mesh.rank().value;
    const StepPlan all = cache.plan(batch, {.scatter = Scatter::kAll});
    EXPECT_EQ(all.tokens_of_output().size(), 7);
    EXPECT_EQ(all.heads_of_output().size(), 4);
    const StepPlan heads = cache.plan(batch, {.scatter = Scatter::kHeads});
    EXPECT_EQ(heads.tokens_of_output().size(), 7);
    EXPECT_EQ(heads.heads_of_output().begin, share_of(4, me, 3).begin);
    EXPECT_EQ(heads.heads_of_output().end, share_of(4, me, 3).end);
    const StepPlan tokens = cache.plan(batch, {.scatter = Scatter::kTokens});
    EXPECT_EQ(tokens.heads_of_output().size(), 4);
    EXPECT_EQ(tokens.tokens_of_output().begin, share_of(7, me, 3).begin);
    EXPECT_EQ(tokens.tokens_of_output().end, share_of(7, me, 3).end);
  });
}

TEST(StepOnRanks, ParticipationNamesRanksWithKeysOfAQuery) {
  run_on_threads(3, [](Mesh& mesh) {
    KvCache cache(mesh, small_cache_options());  // sequences this short stay on one rank
    const SequenceId a = cache.create(), b = cache.create(), empty = cache.create();
    fill(cache, a, 5);
    fill(cache, b, 5);
    const std::vector<BatchEntry> batch{{a, 1}, {empty, 0, 0}, {b, 2}};
    const StepPlan step = cache.plan(batch);
    const std::vector<SequenceId> of_token{a, b, b};
    for (std::int64_t t = 0; t < 3; ++t) {
      const PageRank holder =
          cache.allocator().pages(of_token[static_cast<std::size_t>(t)]).front().rank();
      for (int rank = 0; rank < 3; ++rank) {
        EXPECT_EQ(step.participation().has(t, Rank{rank}), PageRank{rank} == holder) << t;
      }
    }
  });
}

TEST(StepOnRanks, SendsNothingForASequenceOnItsReader) {
  run_on_threads(2, [](Mesh& mesh) {
    KvCache cache(mesh, small_cache_options());
    const SequenceId sequence = cache.create();
    const std::vector<BatchEntry> batch{{sequence, 2}};
    StepPlan step = cache.plan(batch, {.scatter = Scatter::kTokens});
    const std::uint64_t before = mesh.kv_comm().sent_bytes();
    StepTensors tensors;
    std::vector<float> o(4 * 6);
    step.run(0, tensors.input(), {tensor(o.data(), {1, 4, 6}), {}});
    // Each rank gets one token; the rank that holds the sequence sends the other its four rows of
    // six numbers and an LSE, and 16 bytes of digest.
    const bool holds = cache.allocator().pages(sequence).front().rank() == mesh.page_rank();
    EXPECT_EQ(mesh.kv_comm().sent_bytes() - before, holds ? 4u * (6 + 1) * 4 + 16 : 0u);
  });
}

/// Makes sequences that are whole on one of the ranks, one that is spread, and one without pages,
/// in a batch in which owners alternate.
std::vector<BatchEntry> mixed_batch(KvCache& cache) {
  std::vector<BatchEntry> batch;
  for (const std::int64_t tokens : {3, 5, 2, 20, 4, 1}) {
    const SequenceId sequence = cache.create();
    fill(cache, sequence, tokens);
    batch.push_back({sequence, 0, std::min<std::int64_t>(tokens, 2)});
  }
  batch.insert(batch.begin() + 2, {cache.create(), 0, 0});
  return batch;
}

std::vector<BatchEntry> in_order(const std::vector<BatchEntry>& batch,
                                 const std::vector<std::int64_t>& order) {
  std::vector<BatchEntry> ordered;
  for (const std::int64_t i : order) ordered.push_back(batch[static_cast<std::size_t>(i)]);
  return ordered;
}

bool have_rising_owners(const Participation& rows) {
  for (std::int64_t t = 1; t < rows.tokens(); ++t) {
    if (rows.owner(t - 1).value > rows.owner(t).value) return false;
  }
  return true;
}

/// The owners of the batch in this order, which need not append.
bool have_rising_owners(KvCache& cache, std::vector<BatchEntry> batch) {
  for (BatchEntry& entry : batch) entry = {entry.sequence, 0, 1};
  std::erase_if(batch, [&](const BatchEntry& entry) { return cache.length(entry.sequence) == 0; });
  return have_rising_owners(cache.plan(batch, {.scatter = Scatter::kOwner}).participation());
}

MeshOptions rotated(int ranks) { return {.threads = 1, .membership = rotated_membership(ranks)}; }

TEST(OrderByOwner, MakesTheRowsOfEachRankContiguous) {
  for (const int ranks : {1, 2, 3, 5}) {
    CacheOptions options = small_cache_options();
    options.home_threshold_tokens = 8;
    options.pages_per_rank = 12;
    run_on_threads(
        ranks,
        [&](Mesh& mesh) {
          KvCache cache(mesh, options);
          const std::vector<BatchEntry> batch = mixed_batch(cache);
          const std::vector<std::int64_t> order = cache.order_by_owner(batch);
          EXPECT_EQ(order.back(), 2) << "it has no pages";
          EXPECT_EQ(have_rising_owners(cache, batch), ranks == 1);
          const std::vector<BatchEntry> ordered = in_order(batch, order);
          StepPlan step = cache.plan(ordered, {.scatter = Scatter::kOwner});
          EXPECT_TRUE(have_rising_owners(step.participation()));
          std::vector<std::int64_t> again(batch.size());
          std::iota(again.begin(), again.end(), 0);
          EXPECT_EQ(cache.order_by_owner(ordered), again) << "sequences of a rank keep their order";
          const std::vector<std::int64_t> all =
              all_gather_values(mesh.world(), std::span<const std::int64_t>(order));
          for (std::size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i], order[i % order.size()]);
        },
        rotated(ranks));
  }
}

// Two short sequences on each rank: in this order the shares of Scatter::kTokens are the owners'.
TEST(OrderByOwner, GivesSharesThatSendNoRow) {
  CacheOptions options = small_cache_options();
  options.home_threshold_tokens = 8;
  run_on_threads(
      3,
      [&](Mesh& mesh) {
        KvCache cache(mesh, options);
        std::vector<BatchEntry> batch;
        for (int i = 0; i < 6; ++i) {
          batch.push_back({cache.create(), 0, 1});
          fill(cache, batch.back().sequence, 3);
        }
        const auto sent = [&](const std::vector<BatchEntry>& of) {
          StepPlan step = cache.plan(of, {.scatter = Scatter::kTokens});
          const std::vector<float> q(6 * 4 * 8, 0.5f);
          std::vector<float> o(2 * 4 * 6);
          const std::uint64_t before = mesh.kv_comm().sent_bytes();
          step.run(0, {.q = tensor(q.data(), {6, 4, 8})}, {tensor(o.data(), {2, 4, 6}), {}});
          return mesh.kv_comm().sent_bytes() - before;
        };
        EXPECT_EQ(sent(in_order(batch, cache.order_by_owner(batch))), 0u);
        EXPECT_GT(sent(batch), 0u) << "placement alternates";
      },
      rotated(3));
}

// A first page behind the window belongs to no rank: the lowest page rank with pages counts.
TEST(OrderByOwner, FollowsSequencesWhoseFirstPageIsBehindTheWindow) {
  CacheOptions options = small_cache_options();
  options.home_threshold_tokens = 0;
  options.window = 4;
  run_on_threads(
      3,
      [&](Mesh& mesh) {
        KvCache cache(mesh, options);
        std::vector<BatchEntry> batch;
        for (const std::int64_t tokens : {9, 13, 18, 22}) {
          batch.push_back({cache.create(), 0, 1});
          for (std::int64_t t = 0; t < tokens; ++t) fill(cache, batch.back().sequence, 1);
          EXPECT_FALSE(cache.allocator().pages(batch.back().sequence).front().valid());
        }
        EXPECT_FALSE(have_rising_owners(cache, batch));
        EXPECT_TRUE(have_rising_owners(cache, in_order(batch, cache.order_by_owner(batch))));
      },
      rotated(3));
}

// Pages that are only reserved are not in the plan, and those that the step gives up neither.
TEST(OrderByOwner, LooksAtThePagesOfTheStep) {
  CacheOptions options = small_cache_options();
  options.home_threshold_tokens = 0;
  options.placement = Placement::kStriped;
  options.window = 4;
  options.pages_per_rank = 64;
  run_on_threads(
      3,
      [&](Mesh& mesh) {
        KvCache cache(mesh, options);
        std::vector<BatchEntry> batch;
        for (const std::int64_t tokens : {21, 28, 30, 31, 33, 35}) {
          const SequenceId sequence = cache.create();
          if (tokens % 2 == 0) cache.reserve(sequence, 64);
          for (std::int64_t t = 0; t < tokens; ++t) fill(cache, sequence, 1);
          const bool has_room = tokens % options.page_size != 0;
          batch.push_back({sequence, has_room ? 1 : 0, 1});
        }
        const std::vector<BatchEntry> ordered = in_order(batch, cache.order_by_owner(batch));
        const StepPlan step = cache.plan(ordered, {.scatter = Scatter::kOwner});
        EXPECT_TRUE(have_rising_owners(step.participation()));
      },
      rotated(3));
}

TEST_F(Step, OrderByOwnerRejectsWhatIsNotThere) {
  const std::vector<BatchEntry> batch{{sequence_, 1}};
  EXPECT_THROW(static_cast<void>(cache_.order_by_owner(batch, 1)), InvalidArgument);
  cache_.erase(sequence_);
  EXPECT_THROW(static_cast<void>(cache_.order_by_owner(batch)), UnknownSequence);
  EXPECT_TRUE(cache_.order_by_owner({}).empty());
  EXPECT_THROW(static_cast<void>(cache_.order_by_owner({}, 1)), InvalidArgument);
}

}  // namespace
}  // namespace kvmesh::test
