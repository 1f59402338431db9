// The peer combine and gather of processes, which map one another's memory by CUDA IPC.
#include "comm/combine/choice/query_gather.hpp"
#include "tests/gpu/peer_gather_contract.hpp"
#include "tests/support/nccl_hosts.hpp"

namespace kvmesh::test {
namespace {

INSTANTIATE_TYPED_TEST_SUITE_P(Processes, PeerContract, testing::Types<MpiRanks>, RankNames);
INSTANTIATE_TYPED_TEST_SUITE_P(Processes, PeerGatherContract, testing::Types<MpiRanks>, RankNames);

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

/// Ranks with GPUs of their own, which have NCCL and windows.
class PeerAndNccl : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() < comm_->size()) GTEST_SKIP() << "fewer GPUs than ranks";
    check(cudaSetDevice(me_));
    group_.emplace(std::shared_ptr<Communicator>(comm_.get(), [](Communicator*) {}),
                   Device{DeviceKind::kCuda, me_}, true, kTestWindow);
    if (group_->nccl() == nullptr) GTEST_SKIP() << "no NCCL";
    if (group_->peer_window() == nullptr) GTEST_SKIP() << group_->no_peer_window();
    ways_.emplace(*group_);
    stream_.emplace();
  }

  const std::unique_ptr<Communicator> comm_ = make_mpi_communicator();
  const int me_ = comm_->rank().value;
  std::optional<DeviceGroup> group_;
  std::optional<CombineWays> ways_;
  std::optional<OwnStream> stream_;
};

/// Both merge in rank order, with the same arithmetic.
TEST_F(PeerAndNccl, GiveTheSameBits) {
  for (Scatter scatter : {Scatter::kAll, Scatter::kTokens, Scatter::kHeads}) {
    CombineCase test = full_case(comm_->size(), 33, 7, 96, scatter);
    std::vector<Result> results;
    for (WayKind kind : {WayKind::kPeer, WayKind::kNccl}) {
      const auto way = ways_->make(kind);
      const DeviceCase on_device(test, me_);
      way->plan({33, 7, 96}, options_of(test, CombineStrategy::kAllToAll), stream_->view());
      way->run(on_device.partial(), on_device.output(), stream_->view());
      group_->wait(stream_->view(), "test combine");
      results.push_back(on_device.result());
    }
    EXPECT_TRUE(same_bits(results[0], results[1])) << name(scatter);
  }
}

/// And so does the way through the host. Of one token all messages go to their place.
TEST_F(PeerAndNccl, GatherTheSameQueries) {
  for (WayKind kind : {WayKind::kPeer, WayKind::kNccl, WayKind::kStaged}) {
    QueryGather gather(*ways_, kind);
    for (const GatherSizes& sizes :
         {GatherSizes{Dtype::kBFloat16, 1, 7, 64}, GatherSizes{Dtype::kBFloat16, 9, 7, 64},
          GatherSizes{Dtype::kFloat32, 9, 8, 96, 4}, GatherSizes{Dtype::kFloat16, 3, 1, 5, 1}}) {
      SCOPED_TRACE(
          fmt::format("{} [{}, {}, {}]", name(kind), sizes.tokens, sizes.heads, sizes.dim));
      GatherTensors tensors(sizes, me_, comm_->size());
      const auto run = [&] { gather.run(tensors.queries(), stream_->view()); };
      run();
      group_->wait(stream_->view(), "test gather");
      tensors.expect_first(sizes.tokens);
      if (kind == WayKind::kStaged) continue;
      const std::uint64_t generation = gather.generation();
      tensors.change(1);
      {
        const Graph graph(stream_->get(), run);
        graph.launch(stream_->get());
        group_->wait(stream_->view(), "test gather");
      }
      tensors.expect_first(sizes.tokens);
      EXPECT_EQ(gather.generation(), generation);
    }
  }
}

}  // namespace
}  // namespace kvmesh::test
