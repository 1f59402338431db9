#include "comm/combine/host/host_way.hpp"

#include <gtest/gtest.h>

#include <array>

#include "tests/comm/combine/combine_case.hpp"
#include "tests/support/ranks.hpp"

namespace kvmesh::test {
namespace {

// The buffers of rank 0 after it has combined `test`.
std::size_t buffers_of(const CombineCase& test) {
  std::size_t bytes = 0;
  run_loopback(2, [&](Communicator& comm) {
    CombineCase mine = test;
    HostWay way(std::make_shared<RowExchange>(comm));
    run_case(way, mine, comm.rank().value, CombineStrategy::kAllToAll);
    if (comm.rank().value == 0) bytes = way.workspace_bytes();
  });
  return bytes;
}

TEST(HostWay, SendsLargeRowsWithoutACopy) {
  CombineCase dense = full_case(2, 64, 4, 64, Scatter::kAll), gappy = dense;
  for (HeldPartial& partial : gappy.partials) partial = with_gap(partial, 1);
  constexpr std::size_t kO = 64 * 4 * 64 * sizeof(float);
  EXPECT_LT(buffers_of(dense), kO + kO / 8) << "the peer's O and LSEs";
  EXPECT_GT(buffers_of(gappy), 2 * kO) << "and its own O in one piece";
}

/// Runs two plans that move messages of equal lengths, one on each of two ranks. Both must refuse
/// the rows that come, and name what differs.
void expect_refused(const CombineShape& shape, const std::array<CombineOptions, 2>& options,
                    const std::array<PlanDigest, 2>& digests, const std::string& groups) {
  SCOPED_TRACE(groups);
  run_loopback(
      2,
      [&](Communicator& comm) {
        const auto me = static_cast<std::size_t>(comm.rank().value);
        CombineCase test = full_case(2, shape.tokens, shape.heads, shape.dim, Scatter::kAll);
        const CombineBlock own = block_of(shape, options[me].scatter, comm.rank().value, 2);
        HeldPartial out(own.tokens.size(), own.heads.size(), shape.dim, 0);
        HostWay way(std::make_shared<RowExchange>(comm));
        way.identify(digests[me]);
        way.plan(shape, options[me], {});
        std::string said;
        try {
          way.run(test.partials[me].view(), {out.view().o, out.view().lse}, {});
        } catch (const DigestMismatch& error) {
          said = error.what();
        }
        EXPECT_TRUE(said.ends_with("differ in: " + groups)) << said;
      },
      kTestDeadline);
}

TEST(HostWay, RefusesRowsForAnotherShareOfTheOutput) {
  // Four tokens of four heads: a half of the heads is as large as a half of the tokens.
  expect_refused({4, 4, 8}, {{{.scatter = Scatter::kHeads}, {.scatter = Scatter::kTokens}}}, {},
                 "strategy");
}

TEST(HostWay, RefusesRowsForOtherOwners) {
  std::array<Participation, 2> masks{Participation(4, 2), Participation(4, 2)};
  for (int t = 0; t < 4; ++t) {
    for (const Rank rank : {Rank{0}, Rank{1}}) {
      for (Participation& mask : masks) mask.add(t, rank);
    }
    masks[0].set_owner(t, Rank{t / 2});
    masks[1].set_owner(t, Rank{1 - t / 2});
  }
  expect_refused({4, 4, 8},
                 {{{.scatter = Scatter::kOwner, .participation = &masks[0]},
                   {.scatter = Scatter::kOwner, .participation = &masks[1]}}},
                 {}, "lengths");
}

// Rows that go without a copy have the digest in the message of their LSEs.
TEST(HostWay, RefusesLargeRowsOfAnotherPlan) {
  std::array<PlanDigest, 2> digests;
  digests[1].add(PlanGroup::kScale, 1);
  for (const Scatter scatter : {Scatter::kAll, Scatter::kTokens}) {
    expect_refused({64, 4, 64},
                   {{{.scatter = scatter, .strategy = CombineStrategy::kAllToAll},
                     {.scatter = scatter, .strategy = CombineStrategy::kAllToAll}}},
                   digests, "scale");
  }
}

/// Both tensors of a partial and of an output are in host memory.
TEST(HostWay, RefusesTensorsOfAGpu) {
  run_loopback(1, [](Communicator& comm) {
    CombineCase test = full_case(1, 2, 2, 8, Scatter::kAll);
    HeldPartial out(2, 2, 8, 0);
    HostWay way(std::make_shared<RowExchange>(comm));
    way.plan({2, 2, 8}, {}, {});
    const auto check = [&](int moved) {
      Partial mine = test.partials[0].view();
      CombineOutput output{out.view().o, out.view().lse};
      TensorView* const tensors[] = {&mine.o, &mine.lse, &output.o, &output.lse};
      if (moved >= 0) tensors[moved]->device = {DeviceKind::kCuda, 0};
      way.check_run(mine, output, DeviceKind::kCpu);
    };
    EXPECT_NO_THROW(check(-1));
    for (int tensor = 0; tensor < 4; ++tensor) EXPECT_THROW(check(tensor), InvalidArgument);
  });
}

TEST(HostWay, RefusesAnLseThatIsNotFloat32) {
  run_loopback(1, [](Communicator& comm) {
    CombineCase test = full_case(1, 2, 2, 8, Scatter::kAll);
    HeldPartial out(2, 2, 8, 0);
    HostWay way(std::make_shared<RowExchange>(comm));
    way.plan({2, 2, 8}, {}, {});
    CombineOutput output{out.view().o, out.view().lse};
    output.lse.dtype = Dtype::kBFloat16;
    EXPECT_THROW(way.check_run(test.partials[0].view(), output, DeviceKind::kCpu), InvalidArgument);
  });
}

}  // namespace
}  // namespace kvmesh::test
