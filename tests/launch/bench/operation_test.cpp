// An operation is what its options say, whatever its time.
#include "launch/bench/operation.hpp"

#include <gtest/gtest.h>

#include "kvmesh/error.hpp"
#include "launch/bench/manners.hpp"

namespace kvmesh::bench {
namespace {

constexpr Shape kSmall{
    .q_heads = 4, .kv_heads = 2, .k_dim = 8, .v_dim = 8, .page_size = 4, .dtype = Dtype::kFloat32};

Options options_of(Manner manner) {
  return {.shape = kSmall, .scatter = Scatter::kHeads, .manner = manner};
}

/// Runs `body(workload, machine)` on ranks that are threads.
template <class Body>
void on_ranks(int ranks, const WorkloadShape& shape, const Body& body) {
  run_on_threads(ranks,
                 [&](Mesh& mesh) {
                   const auto machine = make_cpu_machine(mesh, 1 << 20);
                   Workload workload(mesh, *machine, shape);
                   body(workload, *machine);
                 },
                 {.threads = 1});
}

TEST(Machine, PreparesEachTurnOfTheOperationAlone) {
  run_on_threads(2, [](Mesh& mesh) {
    std::string order;
    const auto note = [&](char what) { return [&order, what](int, Stream) { order += what; }; };
    Repeated operation{.work = note('o'), .calls = 2};
    operation.prepare = [&](Stream) { order += 'p'; };
    const Repeated ceiling{.work = note('c')};
    make_cpu_machine(mesh, 1 << 20)->time(operation, {{ceiling}}, {}, 3);
    EXPECT_EQ(order, "poocpoocpooc");
  });
}

// The plan of a graph that an engine replays has room for what its sequences grow to.
TEST(StepWithLimits, HasRoomForTwiceTheLengths) {
  const WorkloadShape shape{.model = kSmall, .batch = 3, .context = 3001};
  on_ranks(2, shape, [](Workload& workload, Machine&) {
    const auto limits = plan_options(workload, options_of(Manner::kLimits), 2).limits;
    ASSERT_TRUE(limits.has_value());
    EXPECT_EQ(limits->sequences, 3);
    EXPECT_EQ(limits->query_tokens, 2);
    EXPECT_EQ(limits->pages, 2 * workload.cache().options().pages_per_rank);
    for (const Manner manner : {Manner::kPlain, Manner::kSinks, Manner::kFixed})
      EXPECT_FALSE(plan_options(workload, options_of(manner), 2).limits.has_value());
  });
}

TEST(StepWithLimits, IsPlannedAgainBeforeEachTurn) {
  const WorkloadShape shape{
      .model = kSmall, .batch = 3, .context = 20, .lengths = Lengths::kRagged, .layers = 2};
  for (const int ranks : {1, 2}) {
    on_ranks(ranks, shape, [](Workload& workload, Machine& machine) {
      const auto step =
          make_operation(workload, machine, options_of(Manner::kLimits), Op::kStep, 2);
      const Repeated steps = step->repeated();
      machine.time({.work = steps.work, .calls = 2}, {}, {}, 1);  // as it was made
      // Another plan appends to the same sequences: nothing of the step is valid any more.
      static_cast<void>(workload.plan(1, 1, {}));
      const std::uint64_t before = workload.cache().digest();
      EXPECT_THROW(steps.work(0, {}), InvalidArgument);
      machine.time(steps, {}, {}, 2);
      EXPECT_NE(workload.cache().digest(), before);
      for (std::size_t i = 0; i < workload.sequences().size(); ++i)
        EXPECT_EQ(workload.cache().length(workload.sequences()[i]), workload.lengths()[i]);
    });
  }
}

TEST(StepWithLimits, IsTheOnlyStepThatIsPlannedAgain) {
  const WorkloadShape shape{.model = kSmall, .batch = 1, .context = 20};
  on_ranks(1, shape, [](Workload& workload, Machine& machine) {
    for (const Manner manner : {Manner::kPlain, Manner::kSinks, Manner::kLimits}) {
      const auto step = make_operation(workload, machine, options_of(manner), Op::kStep, 1);
      EXPECT_EQ(static_cast<bool>(step->repeated().prepare), manner == Manner::kLimits);
    }
  });
}

}  // namespace
}  // namespace kvmesh::bench
