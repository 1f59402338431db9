#include "runtime/step/step_combine.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "tests/support/random.hpp"
#include "tests/support/ranks.hpp"

namespace kvmesh::test {
namespace {

constexpr CombineShape kShape{.tokens = 4, .heads = 2, .dim = 8};

/// Bytes that this rank sends for a step whose keys all live on rank 0.
std::uint64_t sent_bytes(Communicator& comm, bool has_limits) {
  DeviceGroup group(std::shared_ptr<Communicator>(&comm, [](Communicator*) {}), Device{});
  CombineWays ways(group);
  const Membership members(comm.size());
  LocalSequence pages;
  pages.held.assign(static_cast<std::size_t>(comm.size()), 0);
  pages.held[0] = 1;
  StepBatch batch;
  batch.set_members(members);
  batch.add({.sequence = SequenceId(0, 0, 0),
             .size = {.queries = kShape.tokens, .length = kShape.tokens},
             .pages = &pages});

  std::vector<float> o(64, 1.0f), lse(8, 0.5f), out(64);
  const std::int64_t tokens = share_of(kShape.tokens, comm.rank().value, comm.size()).size();
  StepCombine combine(ways, {.scatter = Scatter::kTokens}, has_limits);
  combine.plan(kShape, batch, {});
  const std::uint64_t before = comm.sent_bytes();
  const Partial mine{tensor(o.data(), {4, 2, 8}), tensor(lse.data(), {4, 2})};
  const CombineOutput output{.o = tensor(out.data(), {tokens, 2, 8})};
  combine.check_run(mine, output);
  combine.run(mine, output, {});
  return comm.sent_bytes() - before;
}

TEST(StepCombine, TakesTheMaskUnlessTheStepHasLimits) {
  run_loopback(2, [](Communicator& comm) {
    constexpr std::uint64_t kHalf = 2 * 2 * (8 + 1) * sizeof(float) + sizeof(PlanDigest);
    EXPECT_EQ(sent_bytes(comm, false), comm.rank().value == 0 ? kHalf : 0);
    EXPECT_EQ(sent_bytes(comm, true), kHalf);
  });
}

TEST(StepCombine, RejectsAStrategyOfOtherDevices) {
  const std::shared_ptr<Communicator> comm = make_single_communicator();
  DeviceGroup group(comm, Device{});
  CombineWays ways(group);
  EXPECT_THROW(StepCombine(ways, {.strategy = CombineStrategy::kAllReduce}, false),
               InvalidArgument);
}

TEST(StepCombine, KeepsItsGenerationAndCountsItsBuffers) {
  run_loopback(2, [](Communicator& comm) {
    DeviceGroup group(std::shared_ptr<Communicator>(&comm, [](Communicator*) {}), Device{});
    CombineWays ways(group);
    StepCombine combine(ways, {}, true);
    combine.plan(kShape, {}, {});
    const std::uint64_t generation = combine.generation();
    EXPECT_EQ(combine.workspace_bytes(), 0u);
    std::vector<float> o(64, 1.0f), lse(8, 0.5f), out(64);
    combine.run({tensor(o.data(), {4, 2, 8}), tensor(lse.data(), {4, 2})},
                {.o = tensor(out.data(), {4, 2, 8})}, {});
    EXPECT_GT(combine.workspace_bytes(), 2 * 64 * sizeof(float));
    combine.plan({8, 2, 8}, {}, {});
    EXPECT_EQ(combine.generation(), generation) << "nothing of it can be captured";
  });
}

/// The first row of a step of `tokens` rows, as it is merged over four ranks on two hosts.
std::vector<float> first_row(Communicator& comm, std::int64_t tokens, bool merges_alike) {
  constexpr std::int64_t kDim = 64;
  DeviceGroup group(std::shared_ptr<Communicator>(&comm, [](Communicator*) {}), Device{});
  group.set_hosts({.hosts = 2, .per_host = 2});
  CombineWays ways(group);
  StepCombine combine(ways, {}, true, merges_alike);
  combine.plan({tokens, 1, kDim}, {}, {});
  Random random(static_cast<std::uint64_t>(comm.rank().value) + 1);
  std::vector<float> o = random.reals(tokens * kDim), lse = random.reals(tokens);
  lse[0] = 0.1f * static_cast<float>(comm.rank().value);
  std::vector<float> out(o.size());
  combine.run({tensor(o.data(), {tokens, 1, kDim}), tensor(lse.data(), {tokens, 1})},
              {.o = tensor(out.data(), {tokens, 1, kDim})}, {});
  out.resize(kDim);
  return out;
}

// Many rows take the way that merges the ranks of a host first.
TEST(StepCombine, MayMergeFewRowsAndManyAlike) {
  run_loopback(4, [](Communicator& comm) {
    EXPECT_EQ(first_row(comm, 1, true), first_row(comm, 4096, true));
    EXPECT_NE(first_row(comm, 1, false), first_row(comm, 4096, false));
  });
}

}  // namespace
}  // namespace kvmesh::test
