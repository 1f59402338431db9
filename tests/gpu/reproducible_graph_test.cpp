// Reproducible steps of one rank and of several, in graphs and outside: every bit is that of one
// rank.
#include <algorithm>
#include <utility>

#include "tests/gpu/replays.hpp"

namespace kvmesh::test {
namespace {

/// True if the rows do not go by way of the host.
bool is_captured(Mesh& mesh) {
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
              {.device = DeviceChoice::kCuda, .gpu = mesh.device().index});
}

TEST(ReproducibleGraph, ReplaysEqualEagerSteps) {
  Mesh mesh = Mesh::from_launcher({.device = DeviceChoice::kCuda});
  const CacheOptions options = reproducible_options();
  if (is_captured(mesh)) {
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
  Mesh mesh = Mesh::from_launcher({.device = DeviceChoice::kCuda});
  if (!is_captured(mesh)) GTEST_SKIP() << "ranks share a GPU: no capture";
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

// Sequences on one rank and on several, with one query and more, in steps with and without limits:
// with limits every rank takes part in all rows.
TEST(ReproducibleGraph, RowsOfEachScatterAreThoseOfOneRank) {
  Mesh mesh = Mesh::from_launcher({.device = DeviceChoice::kCuda});
  Mesh single = single_mesh(mesh);
  const DeviceMemory numbers = random_numbers(mesh);
  const Stream stream;
  Inputs prompt(mesh, 300);
  prompt.change(numbers, 3);
  const Outputs scratch(mesh, 300), all(mesh, 300), own(mesh, 300);
  Served served{KvCache(mesh, reproducible_options())};
  Served alone{KvCache(single, reproducible_options())};
  const auto steps_of = [&](Served& of) {
    std::vector<BatchEntry> batch = batch_of(of, {3, 20, 61, 130, 290, 7}, prompt, scratch, stream);
    StepPlan step = of.cache.plan(batch);
    of.run(step, prompt, scratch, stream);
    for (BatchEntry& entry : batch) entry.query_tokens = std::exchange(entry.append_tokens, 0);
    return batch;
  };
  const std::vector<BatchEntry> batch = steps_of(served);
  StepPlan want = alone.cache.plan(steps_of(alone));
  const std::int64_t tokens = want.query_tokens();
  LayerInput input = prompt.layer(0, tokens);
  want.run(0, {.q = input.q}, all.layer(0, tokens), {stream});
  single.wait({stream}, "test");
  for (const Scatter scatter :
       {Scatter::kHeads, Scatter::kTokens, Scatter::kAll, Scatter::kOwner}) {
    for (const bool limited : {false, true}) {
      SCOPED_TRACE(fmt::format("{}, limits: {}", name(scatter), limited));
      PlanOptions options{.scatter = scatter};
      if (limited) options.limits = StepLimits{.sequences = 6, .query_tokens = 5};
      StepPlan step = served.cache.plan({}, options);
      served.cache.replan(step, batch, {stream});
      const CombineOutput output = output_of(step, own, step.query_tokens());
      const LayerInput of_step =
          limited ? prompt.layer(0, step.query_tokens()) : LayerInput{input.q};
      const auto run = [&] { step.run(0, of_step, output, {stream}); };
      const auto expect_rows = [&] {
        mesh.wait({stream}, "test");
        expect_own_rows(mesh, step, scatter, output, all.layer(0, tokens), tokens);
        const std::vector<std::byte> nans(static_cast<std::size_t>(output.o.elements()) * 2,
                                          std::byte{0xFF});
        copy_bytes(output.o.data, nans.data(), nans.size());
      };
      run();
      expect_rows();
      if (!is_captured(mesh)) continue;
      const Graph graph(stream, run);
      for (int replay = 0; replay < 2; ++replay) {
        graph.launch(stream);
        expect_rows();
      }
    }
  }
}

}  // namespace
}  // namespace kvmesh::test
