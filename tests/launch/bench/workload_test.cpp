// The sequences of a measurement, their pages and their plans.
#include "launch/bench/workload.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <numeric>

#include "launch/bench/plan_time.hpp"

namespace kvmesh::bench {
namespace {

constexpr Shape kModel{
    .q_heads = 6, .kv_heads = 2, .k_dim = 8, .v_dim = 4, .page_size = 4, .dtype = Dtype::kFloat32};

template <class Body>
void on_threads(int ranks, const WorkloadShape& shape, const Body& body) {
  run_on_threads(ranks,
                 [&](Mesh& mesh) {
                   const auto machine = make_cpu_machine(mesh, 1 << 20);
                   Workload workload(mesh, *machine, shape);
                   body(workload);
                 },
                 {.threads = 1});
}

TEST(Workload, LengthsHaveTheContextAsTheirMean) {
  for (const std::int64_t context : {1, 3, 100, 8191}) {
    for (const std::int64_t batch : {1, 2, 7, 16, 255}) {
      WorkloadShape shape{.batch = batch, .context = context};
      const auto is_context = [&](std::int64_t length) { return length == context; };
      EXPECT_TRUE(std::ranges::all_of(lengths_of(shape), is_context));
      shape.lengths = Lengths::kRagged;
      const std::vector<std::int64_t> lengths = lengths_of(shape);
      ASSERT_EQ(std::ssize(lengths), batch);
      EXPECT_EQ(std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0}), batch * context);
      EXPECT_GE(std::ranges::min(lengths), 1);
      EXPECT_EQ(lengths_of(shape), lengths);
    }
  }
}

TEST(Workload, RaggedLengthsAreOddMultiplesInNoOrder) {
  std::vector<std::int64_t> lengths =
      lengths_of({.batch = 16, .context = 160, .lengths = Lengths::kRagged});
  EXPECT_FALSE(std::ranges::is_sorted(lengths));
  std::ranges::sort(lengths);
  for (std::int64_t i = 0; i < 16; ++i) {
    EXPECT_EQ(lengths[static_cast<std::size_t>(i)], 10 * (2 * i + 1));
  }
}

// A page on another rank than placement chooses would be a shortage of the benchmark's own.
TEST(Workload, RanksHaveRoomForEveryPlacement) {
  for (const std::int64_t context : {60, 1500, 2500, 6000}) {
    const WorkloadShape shape{
        .model = kModel, .batch = 7, .context = context, .lengths = Lengths::kRagged};
    run_on_threads(3, [&](Mesh& mesh) {
      const auto machine = make_cpu_machine(mesh, 1 << 20);
      Workload workload(mesh, *machine, shape);
      for (std::size_t i = 0; i < workload.sequences().size(); ++i) {
        std::vector<std::int64_t> on(3);
        for (const PageId page : workload.cache().allocator().pages(workload.sequences()[i])) {
          ++on[static_cast<std::size_t>(page.rank().value)];
        }
        std::ranges::sort(on);
        EXPECT_LE(on[1] - on[0], 1);  // all but the home
        if (workload.lengths()[i] <= 2048) {
          EXPECT_EQ(on[1], 0);
        }
      }
    });
  }
}

void expect_scattered(const Shape& model) {
  run_on_threads(2, [&](Mesh& mesh) {
    const auto machine = make_cpu_machine(mesh, 1 << 20);
    Workload workload(mesh, *machine, {.model = model, .batch = 2, .context = 4000, .layers = 2});
    for (int step = 0; step < 3; ++step) {
      const StepPlan plan = workload.plan(5, 3, {});
      EXPECT_EQ(plan.append_tokens(), 10);
      EXPECT_EQ(plan.query_tokens(), 6);
      int neighbours = 0, local = 0;
      for (const SequenceId sequence : workload.sequences()) {
        EXPECT_EQ(workload.cache().allocator().length(sequence), 4000);
        PageId before;
        for (const PageId page : workload.cache().allocator().pages(sequence)) {
          if (page.rank() != mesh.page_rank()) continue;
          if (before.valid() && page.index() == before.index() + 1) ++neighbours;
          before = page;
          ++local;
        }
      }
      EXPECT_GT(local, 900);
      EXPECT_LT(neighbours, local / 20);
    }
  });
}

TEST(Workload, SequencesLieScatteredAndPlansRestoreLengths) {
  expect_scattered(kModel);
  Shape with_states = kModel;
  with_states.state_bytes = 32;
  expect_scattered(with_states);
}

// Layers of each kind take turns.
TEST(Workload, HasStatesOfEverySequenceBesideItsKeys) {
  WorkloadShape shape{.model = kModel, .batch = 5, .context = 30, .layers = 6};
  shape.model.window = 11;
  shape.model.state_bytes = 32;
  for (const int ranks : {1, 2, 3}) {
    std::atomic<std::int64_t> elements = 0;
    on_threads(ranks, shape, [&](Workload& w) {
      EXPECT_TRUE(std::ranges::equal(w.attended_layers(), std::array{0, 1, 3, 4}));
      EXPECT_EQ(w.attended_layer(2), 3);
      EXPECT_EQ(w.attended_layer(5), 1);
      for (int layer = 0; layer < 6; ++layer) EXPECT_EQ(w.cache().group_of(layer), layer % 3);
      EXPECT_EQ(w.cache().group_options(1).window, 11);
      for (const SequenceId sequence : w.sequences()) {
        for (const int layer : {2, 5}) {
          const TensorView state = w.cache().sequence_state(layer, sequence);
          if (!state.empty()) elements += state.elements();
        }
      }
    });
    EXPECT_EQ(elements, 5 * 2 * 32 / 4) << ranks << " ranks";
  }
}

TEST(Workload, CountsTheBytesOfEachKindOfLayer) {
  WorkloadShape shape{.model = kModel, .batch = 5, .context = 30};
  on_threads(1, shape, [&](Workload& w) {
    const std::int64_t keys = layer_bytes(shape, w.mesh());
    EXPECT_EQ(keys, 5 * 8 * 4 * 2 * (8 + 4) * 4);  // eight pages of each sequence
    EXPECT_EQ(bytes_of_kinds(shape, w.mesh()), keys);
    shape.model.window = 11;
    EXPECT_EQ(bytes_of_kinds(shape, w.mesh()), 2 * keys);
    shape.model.state_bytes = 1 << 20;
    EXPECT_EQ(bytes_of_kinds(shape, w.mesh()), 2 * keys + (6 << 20));
  });
}

// The pages behind a window are given up as in an engine, and what plans append again is there.
TEST(Workload, PlansOfWindowsGivePagesUp) {
  WorkloadShape shape{.model = kModel, .batch = 3, .context = 200, .layers = 2};
  shape.model.window = 11;
  const Options options{.shape = shape.model, .repeats = 5};
  shape.again = tokens_of_plans(lengths_of(shape), options, 2);
  EXPECT_EQ(shape.again, 2 * (50 + 1));
  for (const int ranks : {1, 2, 3}) {
    on_threads(ranks, shape, [&](Workload& w) {
      const auto held = [&] {
        const auto pages = w.cache().allocator(1).pages(w.sequences()[0]);
        return std::ranges::count_if(pages, [](PageId page) { return page.valid(); });
      };
      EXPECT_GE(held(), (shape.again + 10) / kModel.page_size);
      const Row row = measure_plan(w, options, 2);
      EXPECT_EQ(row.turns, 50);
      EXPECT_LE(held(), 11 / kModel.page_size + 2 + 1);
      for (const SequenceId sequence : w.sequences()) EXPECT_EQ(w.cache().length(sequence), 200);
    });
  }
}

}  // namespace
}  // namespace kvmesh::bench
