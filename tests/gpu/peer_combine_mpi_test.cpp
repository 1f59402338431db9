// The peer combine of processes, which map one another's memory by CUDA IPC.
#include "comm/combine/combine_ways.hpp"
#include "tests/gpu/peer_contract.hpp"
#include "tests/support/nccl_hosts.hpp"

namespace kvmesh::test {
namespace {

INSTANTIATE_TYPED_TEST_SUITE_P(Processes, PeerContract, testing::Types<MpiRanks>, RankNames);

/// The reason is the same on all ranks, also where one alone has it.
TEST(PeerWindowOfProcesses, IsRefusedBetweenHosts) {
  const std::unique_ptr<Communicator> comm = make_mpi_communicator();
  if (comm->size() == 1) GTEST_SKIP() << "one rank";
  const int last = comm->size() - 1;
  const NcclHost host(comm->rank().value == last ? "b" : "a");
  const Device gpu{DeviceKind::kCuda, comm->rank().value % cuda_device_count()};
  const PeerWindow::Made made = PeerWindow::make(*comm, gpu, kTestWindow);
  EXPECT_EQ(made.window, nullptr);
  EXPECT_EQ(made.refused.reason, PeerRefusal::kOtherHost);
  EXPECT_EQ(made.refused.rank, Rank{0});
  EXPECT_EQ(made.refused.peer, Rank{last});
}

/// Both merge in rank order, with the same arithmetic.
TEST(PeerAndNccl, GiveTheSameBits) {
  const std::unique_ptr<Communicator> comm = make_mpi_communicator();
  const int me = comm->rank().value;
  if (cuda_device_count() < comm->size()) GTEST_SKIP() << "fewer GPUs than ranks";
  const Device gpu{DeviceKind::kCuda, me};
  check(cudaSetDevice(me));
  DeviceGroup group(std::shared_ptr<Communicator>(comm.get(), [](Communicator*) {}), gpu, true,
                    kTestWindow);
  if (group.nccl() == nullptr) GTEST_SKIP() << "no NCCL";
  if (group.peer_window() == nullptr) GTEST_SKIP() << group.no_peer_window();
  CombineWays ways(group);
  const OwnStream stream;
  for (Scatter scatter : {Scatter::kAll, Scatter::kTokens, Scatter::kHeads}) {
    CombineCase test = full_case(comm->size(), 33, 7, 96, scatter);
    std::vector<Result> results;
    for (WayKind kind : {WayKind::kPeer, WayKind::kNccl}) {
      const auto way = ways.make(kind);
      const DeviceCase on_device(test, me);
      way->plan({33, 7, 96}, options_of(test, CombineStrategy::kAllToAll), stream.view());
      way->run(on_device.partial(), on_device.output(), stream.view());
      group.wait(stream.view(), "test combine");
      results.push_back(on_device.result());
    }
    EXPECT_TRUE(same_bits(results[0], results[1])) << name(scatter);
  }
}

}  // namespace
}  // namespace kvmesh::test
