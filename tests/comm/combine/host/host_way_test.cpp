#include "comm/combine/host/host_way.hpp"

#include <gtest/gtest.h>

#include "tests/comm/combine/combine_case.hpp"

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

}  // namespace
}  // namespace kvmesh::test
