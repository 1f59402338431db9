// Attention in captured graphs: the bits of eager runs.
#include <optional>
#include <vector>

#include "kernels/cuda/attend/cuda_attend.hpp"
#include "kvmesh/error.hpp"
#include "tests/gpu/device_tensor.hpp"
#include "tests/gpu/gpu_support.hpp"
#include "tests/gpu/graph.hpp"
#include "tests/gpu/planned_batch.hpp"
#include "tests/support/attention_case.hpp"

namespace kvmesh::test {
namespace {

TEST(AttendGraphs, ReplaysEqualEagerRunsBitForBit) {
  CaseSpec spec{
      .shape = {8, 2, 128, 128, 16}, .dtype = Dtype::kBFloat16, .q_dtype = Dtype::kBFloat16};
  spec.sequences = {{.q_len = 1, .kv_len = 20'000}, {.q_len = 40, .kv_len = 900}};
  spec.options.mask = mods::causal();
  AttentionCase c(spec);
  const CaseResult eager = c.run();
  const CaseResult again = c.run();
  EXPECT_EQ(eager.o, again.o);
  EXPECT_EQ(eager.lse, again.lse);

  CaseResult replayed = c.outputs();
  const Partial out = c.partial(replayed);
  const DeviceTensor q(c.q()), k(c.pool().k), v(c.pool().v), o(out.o), lse(out.lse);
  const ConstKvPool pool{k.view(), v.view()};
  cuda::CudaAttend plan(
      kernels(), spec.shape,
      {.attention = spec.options, .kinds = cuda::kinds_of(q.view(), pool), .short_rows = 4});
  const Stream stream;
  cuda::PageLists pages;
  cuda::AttendPlanner planner;
  planner.plan({&plan, 1}, pages, PlannedBatch(c.batch(), pages).step(), stream);
  plan.check(q.view(), pool);
  const Graph graph(stream, [&] { plan.launch(q.view(), pool, {o.view(), lse.view()}, stream); });
  for (int i = 0; i < 3; ++i) graph.launch(stream);
  stream.wait();
  o.download(out.o.data);
  lse.download(out.lse.data);
  EXPECT_EQ(eager.o, replayed.o);
  EXPECT_EQ(eager.lse, replayed.lse);
}

/// One captured graph for all plans within limits of six sequences with a query each.
class CapturedAttend {
 public:
  CapturedAttend(const CaseSpec& spec, const cuda::AttendLimits& limits,
                 std::int64_t fixed_split_tokens = 0)
      : spec_(spec),
        plan_(kernels(), spec.shape,
              {.attention = spec.options,
               .fixed_split_tokens = fixed_split_tokens,
               .limits = limits}) {
    planner_.reserve({&plan_, 1});
    planner_.plan({&plan_, 1}, pages_, {}, cudaStreamPerThread);
    check(cudaStreamSynchronize(cudaStreamPerThread));
    plan_.check(q_.view(), pool_);
    graph_.emplace(stream_, [&] {
      plan_.launch(q_.view(), pool_, {o_.view(), lse_.view()}, stream_);
    });
  }

  /// Plans, replays, and expects the bits of a plan of its own.
  void expect_step(const std::vector<CaseSequence>& sequences) {
    spec_.sequences = sequences;
    AttentionCase c(spec_);
    const CaseResult eager = c.run();
    put(c);
    replay(c.batch());
    for (std::int64_t t = 0; t < c.tokens(); ++t) {
      for (std::int64_t h = 0; h < 8; ++h) {
        EXPECT_EQ(lse_room_.at(t, h), eager.lse.at(t, h)) << "token " << t;
        for (std::int64_t d = 0; d < 128; ++d) {
          ASSERT_EQ(o_room_.at(t, h, d), eager.o.at(t, h, d)) << "token " << t << " head " << h;
        }
      }
    }
    EXPECT_TRUE(c.matches(eager));
  }

  /// Plans the first `count` sequences of a case that was put, replays, and returns O and the LSEs
  /// of the first one's token.
  std::vector<float> first_row_of(const AttentionCase& c, std::size_t count) {
    AttentionBatch batch = c.batch();
    batch.q_indptr.resize(count + 1);
    batch.kv_lens.resize(count);
    batch.page_indptr.resize(count + 1);
    replay(batch);
    std::vector<float> row;
    for (std::int64_t h = 0; h < 8; ++h) {
      row.push_back(lse_room_.at(0, h));
      for (std::int64_t d = 0; d < 128; ++d) row.push_back(o_room_.at(0, h, d));
    }
    return row;
  }

  void put(AttentionCase& c) const {
    const auto put = [](const DeviceTensor& to, const ConstTensorView& from) {
      copy_bytes(to.view().data, from.data, extent_bytes(from));
    };
    put(q_, c.q());
    put(k_, c.pool().k);
    put(v_, c.pool().v);
  }

  void plan(const AttentionBatch& batch) {
    PlannedBatch planned(batch, pages_);
    planner_.plan({&plan_, 1}, pages_, planned.step_of(plan_), stream_);
    stream_.wait();
  }
  const cuda::CudaAttend& attend() const { return plan_; }

 private:
  void replay(const AttentionBatch& batch) {
    const std::uint64_t generation = plan_.generation();
    plan(batch);
    EXPECT_EQ(plan_.generation(), generation);
    graph_->launch(stream_);
    stream_.wait();
    o_.download(o_room_.view().data);
    lse_.download(lse_room_.view().data);
  }

  CaseSpec spec_;
  cuda::CudaAttend plan_;
  cuda::AttendPlanner planner_;
  cuda::PageLists pages_;
  Stream stream_;
  // The most tokens and pages of any step: the tensors of the graph.
  OwnedTensor q_room_{Dtype::kBFloat16, {6, 8, 128}}, o_room_{Dtype::kFloat32, {6, 8, 128}},
      lse_room_{Dtype::kFloat32, {6, 8}}, pool_room_{Dtype::kBFloat16, {1210, 2, 16, 128}};
  DeviceTensor q_{q_room_.view()}, o_{o_room_.view()}, lse_{lse_room_.view()};
  DeviceTensor k_{pool_room_.view()}, v_{pool_room_.view()};
  ConstKvPool pool_{k_.view(), v_.view()};
  std::optional<Graph> graph_;
};

constexpr cuda::AttendLimits kGraphLimits{.sequences = 6, .queries = 1, .pages = 1200};

CaseSpec graph_spec(const MaskMod& mask) {
  CaseSpec spec{
      .shape = {8, 2, 128, 128, 16}, .dtype = Dtype::kBFloat16, .q_dtype = Dtype::kBFloat16};
  spec.options.mask = mask;
  return spec;
}

// Sequences grow across the borders of pages, come and go; one captured graph serves them all.
TEST(AttendGraphs, ReplaysComputeTheNewestPlan) {
  CaseSpec spec = graph_spec(mods::sliding_window(5000));
  CapturedAttend captured(spec, kGraphLimits);
  const std::vector<std::vector<std::int64_t>> steps{
      {16'000}, {16'001, 1}, {5, 6, 7, 8, 9, 10}, {}, {31, 0, 300, 4000}, {32, 300, 12'000}};
  for (const std::vector<std::int64_t>& lengths : steps) {
    std::vector<CaseSequence> sequences;
    for (std::int64_t length : lengths) sequences.push_back({.q_len = 1, .kv_len = length});
    captured.expect_step(sequences);
  }
  // More pages than the limits have room for make the graph invalid, more queries are refused.
  spec.sequences = {{.q_len = 1, .kv_len = 1201 * 16}};
  spec.options.mask = mods::no_mask();
  const std::uint64_t generation = captured.attend().generation();
  captured.plan(AttentionCase(spec).batch());
  EXPECT_NE(captured.attend().generation(), generation);
  spec.sequences = {{.q_len = 2, .kv_len = 20}};
  const AttentionCase wide(spec);
  cuda::PageLists pages;
  EXPECT_THROW(captured.attend().check_plan(PlannedBatch(wide.batch(), pages).sizes()),
               InvalidArgument);
}

// Steps that share a prefix, two prefixes or none.
TEST(AttendGraphs, ReplaysShareTheNewestPrefixes) {
  cuda::AttendLimits limits = kGraphLimits;
  limits.shares_prefixes = true;
  CapturedAttend captured(graph_spec(mods::causal()), limits);
  const auto fork = [](std::size_t of, std::int64_t pages, std::int64_t own) {
    return CaseSequence{
        .q_len = 1, .kv_len = 16 * pages + own, .prefix = {.of = of, .pages = pages}};
  };
  const CaseSequence first{.q_len = 1, .kv_len = 2000};
  captured.expect_step({first, fork(0, 125, 1), fork(0, 125, 300), fork(0, 100, 9)});
  captured.expect_step({first, {.q_len = 1, .kv_len = 77}});
  captured.expect_step({});
  captured.expect_step({first,
                        fork(0, 125, 5),
                        {.q_len = 1, .kv_len = 700},
                        fork(2, 43, 1),
                        fork(0, 120, 33),
                        fork(2, 40, 2)});
}

// All of the 1200 pages that the limits allow: no array may grow for the pieces.
TEST(AttendGraphs, ReplaysOfAFixedSplitDoNotDependOnTheBatch) {
  for (const std::int64_t tokens : {128, 1024}) {
    CaseSpec spec = graph_spec(mods::causal());
    for (const std::int64_t length : {9001, 100, 1, 2049, 4000, 3999}) {
      spec.sequences.push_back({.q_len = 1, .kv_len = length});
    }
    AttentionCase c(spec);
    CapturedAttend captured(spec, kGraphLimits, tokens);
    captured.put(c);
    const std::vector<float> alone = captured.first_row_of(c, 1);
    for (const std::size_t count : {6, 2, 4, 1}) {
      EXPECT_EQ(captured.first_row_of(c, count), alone) << count << " sequences";
    }
  }
}

}  // namespace
}  // namespace kvmesh::test
