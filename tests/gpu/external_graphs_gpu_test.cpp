// Runs over an engine's pages in a captured graph, which computes the batch that was planned last,
// on one rank and on several that own the tokens in turn.
#include <gtest/gtest.h>

#include "tests/contracts/external_case.hpp"
#include "tests/gpu/captured.hpp"
#include "tests/gpu/gpu_support.hpp"
#include "tests/gpu/graph.hpp"
#include "tests/support/kept_meshes.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

using Batch = std::vector<ExternalSequence>;

constexpr StepLimits kLimits{.sequences = 4, .query_tokens = 3};

/// One run, captured once; between replays other batches, in pages drawn anew.
class ExternalReplays {
 public:
  ExternalReplays(Mesh& mesh, const ExternalForm& form, const ExternalStep& step)
      : mesh_(mesh), engine_(mesh, form, seed_or(23)), step_(step) {
    step_.plan.limits = kLimits;
  }
  ~ExternalReplays() {
    for (const std::string& message : engine_.findings().messages()) ADD_FAILURE() << message;
    EXPECT_GT(engine_.findings().rows(), 0);
  }
  ExternalReplays(const ExternalReplays&) = delete;
  ExternalReplays& operator=(const ExternalReplays&) = delete;

  /// The first batch, which runs before the capture. With `listed` positions per query, if any.
  void capture(const Batch& batch, std::int64_t listed = 0) {
    draw(batch, listed);
    plan_ = engine_.pool().plan(engine_.tables(), step_.plan);
    tensors_.emplace(engine_.tensors_of(plan_));
    engine_.fill(*tensors_);
    const ExternalCase::Arguments given = engine_.upload(*tensors_, plan_, step_);
    const auto run = [&] { plan_.run(given.pool, given.input, given.output, {stream_}); };
    run();
    compare();
    generation_ = plan_.generation();
    graph_.emplace(stream_, run);
  }
  void replay(const Batch& batch, std::int64_t listed = 0) {
    draw(batch, listed);
    engine_.pool().replan(plan_, engine_.tables(), {stream_});
    ASSERT_EQ(plan_.generation(), generation_);
    engine_.fill(*tensors_);
    static_cast<void>(engine_.upload(*tensors_, plan_, step_));
    graph_->launch(stream_);
    compare();
  }

 private:
  void draw(const Batch& batch, std::int64_t listed) {
    engine_.batch(batch);
    if (listed > 0) step_.visible = engine_.draw_lists(listed) && mods::causal();
  }
  void compare() {
    mesh_.wait({stream_}, "test");
    engine_.compare(*tensors_, plan_, step_);
  }

  Mesh& mesh_;
  ExternalCase engine_;
  ExternalStep step_;
  Stream stream_;
  ExternalPlan plan_;
  std::optional<ExternalCase::Tensors> tensors_;
  std::uint64_t generation_ = 0;
  std::optional<Graph> graph_;
};

/// Forms that run on the plain kernel, on tensor cores, and over latent and float8 pages.
class ExternalGraph : public testing::TestWithParam<ExternalForm> {
 protected:
  void SetUp() override {
    if (!is_captured(mesh_)) GTEST_SKIP() << "ranks share a GPU: no capture";
  }

  Mesh& mesh_ = *kept_meshes.get({.device = DeviceChoice::kCuda});
};

// A batch without sequences, too, and one that fills the limits.
TEST_P(ExternalGraph, ComputesTheBatchPlannedLast) {
  for (bool sinks : {false, true}) {
    const Scatter scatter = sinks ? Scatter::kHeads : Scatter::kAll;
    ExternalReplays replays(mesh_, GetParam(), {.plan = {.scatter = scatter}, .sinks = sinks});
    replays.capture({{41, 3, 3}, {9, 1, 1}});
    replays.replay({{60, 1, 1}, {1, 1, 1}, {33, 3, 3}, {200, 2, 0}});
    replays.replay({});
    replays.replay({{150, 3, 1}});
    replays.replay({{9, 1, 0}, {77, 3, 3}, {2, 2, 2}, {12, 1, 1}});
  }
}

// Longer and shorter lists, of other batches.
TEST_P(ExternalGraph, ComputesTheTokenListsPlannedLast) {
  ExternalReplays replays(mesh_, GetParam(), {});
  replays.capture({{41, 3, 0}, {200, 2, 0}}, 90);
  replays.replay({{200, 1, 0}, {1, 1, 0}, {33, 3, 0}, {0, 0, 0}}, 90);
  replays.replay({{150, 3, 0}}, 7);
  replays.replay({{9, 1, 0}, {77, 3, 0}, {2, 2, 0}, {12, 1, 0}}, 41);
}

std::string name_of(const testing::TestParamInfo<ExternalForm>& info) {
  const ContractShape& shape = info.param.shape;
  return fmt::format("{}{}Order{}", name(shape.dtype),
                     shape.kind == PageKind::kLatent ? "Latent" : "",
                     static_cast<int>(info.param.order));
}

INSTANTIATE_TEST_SUITE_P(
    Forms, ExternalGraph,
    testing::Values(
        ExternalForm{
            .shape = {6, 2, 20, 12, 4, Dtype::kFloat32}, .order = PoolOrder::kNhd, .interleave = 1},
        ExternalForm{.shape = {8, 2, 128, 128, 16, Dtype::kBFloat16}},
        ExternalForm{.shape = {8, 2, 128, 128, 16, Dtype::kBFloat16},
                     .order = PoolOrder::kPairNhd,
                     .interleave = 8,
                     .block_table = true},
        ExternalForm{.shape = {16, 1, 576, 512, 64, Dtype::kBFloat16, PageKind::kLatent}},
        ExternalForm{.shape = {8, 2, 128, 128, 16, Dtype::kFloat8E4M3}},
        ExternalForm{.shape = {8, 2, 128, 128, 16, Dtype::kFloat8E4M3},
                     .order = PoolOrder::kHeadScales,
                     .interleave = 1}),
    name_of);

}  // namespace
}  // namespace kvmesh::test
