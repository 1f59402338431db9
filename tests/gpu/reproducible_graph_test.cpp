// Reproducible steps of one rank and of several, in graphs and outside: every bit is that of one
// rank.
#include <algorithm>
#include <utility>

#include "tests/gpu/replays.hpp"
#include "tests/support/kept_meshes.hpp"

namespace kvmesh::test {
namespace {

/// True if the rows do not go by way of the host.
bool is_captured_by_nccl(Mesh& mesh) {
  return mesh.kv_parallel() == 1 || mesh.device_group().nccl() != nullptr;
}

CacheOptions reproducible_options() {
  CacheOptions options = cache_options();
  options.reproducible = true;
  return options;
}

/// One rank, on the GPU of this one.
Mesh single_mesh(const Mesh& mesh) {
  return Mesh(make_single_communicator(),
              {.device = DeviceChoice::kCuda, .gpu = mesh.device().index, .makes_nccl = false});
}

TEST(ReproducibleGraph, ReplaysEqualEagerSteps) {
  Mesh& mesh = *kept_meshes.get({.device = DeviceChoice::kCuda});
  const CacheOptions options = reproducible_options();
  if (is_captured_by_nccl(mesh)) {
    return expect_replays_like_eager_steps(mesh, mesh, options, std::min(steps_or(200), 200));
  }
  // The rows of ranks that share a GPU go by way of the host.
  const Stream stream;
  Served served{KvCache(mesh, options)};
  const Inputs inputs(mesh, 2);
  const Outputs outputs(mesh, 2);
  StepPlan step = served.cache.plan({}, {.limits = StepLimits{.sequences = 2, .query_tokens = 1}});
  served.run(step, inputs, outputs, stream);  // loads the kernels
  EXPECT_THROW(Graph(stream, [&] { served.run(step, inputs, outputs, stream); }), Unsupported);
}

TEST(ReproducibleGraph, ReplaysEqualStepsOfOneRank) {
  Mesh& mesh = *kept_meshes.get({.device = DeviceChoice::kCuda});
  if (!is_captured_by_nccl(mesh)) GTEST_SKIP() << "ranks share a GPU: no capture";
  Mesh single = single_mesh(mesh);
  expect_replays_like_eager_steps(mesh, single, reproducible_options(),
                                  std::min(steps_or(100), 100));
}

/// The outputs of layer 0 in the shape that a plan's scatter gives this rank.
CombineOutput output_of(const StepPlan& step, const Outputs& outputs, std::int64_t tokens) {
  const std::int64_t n = step.tokens_of_output().size(), h = step.heads_of_output().size();
  CombineOutput to = outputs.layer(0, tokens);
  to.o = {to.o.data, to.o.dtype, {n, h, kDim}, to.o.device};
  to.lse = {to.lse.data, to.lse.dtype, {n, h}, to.lse.device};
  return to;
}

/// Copies O and the LSEs to the host.
std::pair<std::vector<std::uint16_t>, std::vector<float>> numbers_of(const CombineOutput& output) {
  std::vector<std::uint16_t> o(static_cast<std::size_t>(output.o.elements()));
  std::vector<float> lse(static_cast<std::size_t>(output.lse.elements()));
  copy_bytes(o.data(), output.o.data, o.size() * 2);
  copy_bytes(lse.data(), output.lse.data, lse.size() * 4);
  return {o, lse};
}

/// Compares this rank's rows of the first `tokens` tokens with the same rows of `want`, which has
/// all.
void expect_own_rows(const Mesh& mesh, const StepPlan& step, Scatter scatter,
                     const CombineOutput& got, const CombineOutput& want, std::int64_t tokens) {
  const auto [o, lse] = numbers_of(got);
  const auto [all_o, all_lse] = numbers_of(want);
  const IndexRange n = step.tokens_of_output(), h = step.heads_of_output();
  std::int64_t row = 0;
  for (std::int64_t t = n.begin; t < n.end; ++t) {
    for (std::int64_t head = h.begin; head < h.end; ++head, ++row) {
      if (t >= tokens) continue;
      if (scatter == Scatter::kOwner && step.participation().owner(t) != mesh.kv_rank()) continue;
      const std::int64_t of_all = t * kQHeads + head;
      EXPECT_EQ(lse[static_cast<std::size_t>(row)], all_lse[static_cast<std::size_t>(of_all)])
          << "token " << t << " head " << head;
      EXPECT_TRUE(std::equal(o.begin() + row * kDim, o.begin() + (row + 1) * kDim,
                             all_o.begin() + of_all * kDim))
          << "token " << t << " head " << head;
    }
  }
}

/// The same sequences in a cache over all ranks and in one of one rank, some with one query and
/// some with more; and the rows that one rank gives.
class ScatteredRows {
 public:
  explicit ScatteredRows(Mesh& mesh) : mesh_(mesh), single_(single_mesh(mesh)) {
    prompt_.change(numbers_, 3);
    batch_ = queries_of_prompts(served_);
    StepPlan want = alone_.cache.plan(queries_of_prompts(alone_));
    tokens_ = want.query_tokens();
    q_ = prompt_.layer(0, tokens_).q;
    want.run(0, {.q = q_}, all_.layer(0, tokens_), {stream_});
    single_.wait({stream_}, "test");
  }

  /// Runs a step, and replays it if it can be captured: each time this rank's rows are those of one
  /// rank.
  void expect_those_of_one_rank(const PlanOptions& options) {
    StepPlan step = served_.cache.plan({}, options);
    served_.cache.replan(step, batch_, {stream_});
    const CombineOutput output = output_of(step, own_, step.query_tokens());
    const LayerInput input =
        options.limits ? prompt_.layer(0, step.query_tokens()) : LayerInput{q_};
    const auto run = [&] { step.run(0, input, output, {stream_}); };
    run();
    expect_rows(step, options.scatter, output);
    if (!is_captured_by_nccl(mesh_)) return;
    const Graph graph(stream_, run);
    for (int replay = 0; replay < 2; ++replay) {
      graph.launch(stream_);
      expect_rows(step, options.scatter, output);
    }
  }

 private:
  /// Appends the prompts, and returns a batch of queries at their ends.
  std::vector<BatchEntry> queries_of_prompts(Served& of) {
    std::vector<BatchEntry> batch =
        batch_of(of, {3, 20, 61, 130, 290, 7}, prompt_, scratch_, stream_);
    StepPlan step = of.cache.plan(batch);
    of.run(step, prompt_, scratch_, stream_);
    for (BatchEntry& entry : batch) entry.query_tokens = std::exchange(entry.append_tokens, 0);
    return batch;
  }

  /// Then fills the output with NaN.
  void expect_rows(const StepPlan& step, Scatter scatter, const CombineOutput& output) {
    mesh_.wait({stream_}, "test");
    expect_own_rows(mesh_, step, scatter, output, all_.layer(0, tokens_), tokens_);
    const std::vector<std::byte> nans(static_cast<std::size_t>(output.o.elements()) * 2,
                                      std::byte{0xFF});
    copy_bytes(output.o.data, nans.data(), nans.size());
  }

  Mesh& mesh_;
  Mesh single_;
  DeviceMemory numbers_ = random_numbers(mesh_);
  Stream stream_;
  Inputs prompt_{mesh_, 300};
  Outputs scratch_{mesh_, 300}, all_{mesh_, 300}, own_{mesh_, 300};
  Served served_{KvCache(mesh_, reproducible_options())};
  Served alone_{KvCache(single_, reproducible_options())};
  std::vector<BatchEntry> batch_;  // of served_
  std::int64_t tokens_ = 0;
  ConstTensorView q_;  // [tokens_]
};

// With limits every rank takes part in all rows.
TEST(ReproducibleGraph, RowsOfEachScatterAreThoseOfOneRank) {
  Mesh& mesh = *kept_meshes.get({.device = DeviceChoice::kCuda});
  ScatteredRows rows(mesh);
  for (const Scatter scatter :
       {Scatter::kHeads, Scatter::kTokens, Scatter::kAll, Scatter::kOwner}) {
    for (const bool limited : {false, true}) {
      SCOPED_TRACE(fmt::format("{}, limits: {}", name(scatter), limited));
      PlanOptions options{.scatter = scatter};
      if (limited) options.limits = StepLimits{.sequences = 6, .query_tokens = 5};
      rows.expect_those_of_one_rank(options);
    }
  }
}

}  // namespace
}  // namespace kvmesh::test
