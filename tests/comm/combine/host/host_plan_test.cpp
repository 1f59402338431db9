#include "comm/combine/host/host_plan.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "tests/comm/combine/combine_case.hpp"

namespace kvmesh::test {
namespace {

std::vector<HostPlan> plans_of(const CombineCase& test, int ranks, CombineStrategy strategy) {
  std::vector<HostPlan> plans;
  for (int r = 0; r < ranks; ++r) {
    plans.push_back(
        plan_host_combine({test.tokens, test.heads, test.dim},
                          {.scatter = test.scatter,
                           .strategy = strategy,
                           .participation = test.participation ? &*test.participation : nullptr},
                          r, ranks));
  }
  return plans;
}

TEST(HostPlan, BothEndsOfAMessageAgree) {
  const char* given = std::getenv("KVMESH_SEED");
  const std::uint64_t seed = given ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (int i = 0; i < 200; ++i) {
    const int ranks = 1 + static_cast<int>(random() % 9);
    const CombineCase test = random_case(random, ranks);
    SCOPED_TRACE(test.describe());
    for (CombineStrategy strategy : {CombineStrategy::kAllToAll, CombineStrategy::kReduceScatter}) {
      const std::vector<HostPlan> plans = plans_of(test, ranks, strategy);
      for (std::size_t from = 0; from < plans.size(); ++from) {
        for (std::size_t to = 0; to < plans.size(); ++to) {
          EXPECT_EQ(plans[from].sent_rows[to], plans[to].received_rows[from]);
          if (strategy != CombineStrategy::kReduceScatter) continue;
          EXPECT_EQ(plans[from].sent_lses[to], plans[to].received_lses[from]);
        }
      }
    }
  }
}

TEST(HostPlan, MergesByOwnersIfItGathers) {
  const CombineCase small = full_case(3, 1, 2, 8, Scatter::kAll);
  const CombineCase large = full_case(3, 40, 8, 128, Scatter::kAll);
  EXPECT_FALSE(plans_of(small, 3, CombineStrategy::kAuto)[0].gathers);
  const HostPlan plan = plans_of(large, 3, CombineStrategy::kAuto)[1];
  EXPECT_TRUE(plan.gathers);
  EXPECT_EQ(plan.merging, Scatter::kTokens);
  EXPECT_EQ(plan.own().rows(), 13 * 8);
  EXPECT_EQ(plan.result().rows(), 40 * 8);
  EXPECT_FALSE(plans_of(large, 1, CombineStrategy::kAuto)[0].gathers);
}

TEST(HostPlan, RejectsInvalidArguments) {
  const Participation other_tokens(5, 2), other_ranks(4, 3);
  EXPECT_THROW(plan_host_combine({-1, 8, 64}, {}, 0, 2), InvalidArgument);
  EXPECT_THROW(plan_host_combine({4, 8, -1}, {}, 0, 2), InvalidArgument);
  EXPECT_THROW(plan_host_combine({4, 8, 64}, {.participation = &other_tokens}, 0, 2),
               InvalidArgument);
  EXPECT_THROW(plan_host_combine({4, 8, 64}, {.participation = &other_ranks}, 0, 2),
               InvalidArgument);
  EXPECT_THROW(plan_host_combine({4, 8, 64}, {.strategy = CombineStrategy::kAllReduce}, 0, 2),
               InvalidArgument);
}

}  // namespace
}  // namespace kvmesh::test
