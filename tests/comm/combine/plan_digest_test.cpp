// Digests of plans, also of plans whose messages differ in size.
#include "comm/combine/plan_digest.hpp"

#include <gtest/gtest.h>

#include <atomic>

#include "tests/comm/combine/combine_case.hpp"
#include "tests/comm/combine/ways.hpp"

namespace kvmesh::test {
namespace {

TEST(PlanDigest, NamesTheGroupsThatDiffer) {
  PlanDigest a, b;
  EXPECT_EQ(differing_groups(a, b), "");
  a.add(PlanGroup::kMask, 1);
  b.add(PlanGroup::kMask, 2);
  EXPECT_EQ(differing_groups(a, b), "mask");
  a.add(PlanGroup::kStrategy, 0);
  EXPECT_EQ(differing_groups(a, b), "mask, strategy");
}

// A rank that saw the other size takes its own message back, so the other rank may only time out.
TEST(PlanDigest, MessagesOfOtherSizesDiffer) {
  std::atomic<int> mismatches = 0;
  run_loopback(2, [&](Communicator& comm) {
    comm.set_deadline(std::chrono::milliseconds(200));
    WaysOfRank ways(comm, WayKind::kHost);
    CombineCase test = full_case(2, comm.rank().value == 0 ? 3 : 4, 8, 16, Scatter::kAll);
    try {
      run_case(*ways, test, comm.rank().value, CombineStrategy::kAllToAll);
      ADD_FAILURE() << "merged rows of other plans";
    } catch (const DigestMismatch& error) {
      ++mismatches;
      const std::string said = error.what();
      EXPECT_NE(said.find("differ in lengths or strategy"), std::string::npos) << said;
    } catch (const Timeout&) {
    }
  });
  EXPECT_GE(mismatches, 1);
}

}  // namespace
}  // namespace kvmesh::test
