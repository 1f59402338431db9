// The hierarchical combine on GPUs, under mpirun, against float64: ranks 0 and 1 are one host,
// ranks 2 and 3 another.
#include <algorithm>
#include <chrono>
#include <cmath>

#include "comm/combine/choice/combine_ways.hpp"
#include "comm/combine/hierarchical/takes_hosts.hpp"
#include "tests/gpu/device_combine_run.hpp"
#include "tests/support/nccl_hosts.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/steps.hpp"

namespace kvmesh::test {
namespace {

constexpr HostLayout kHosts{.hosts = 2, .per_host = 2};
constexpr int kRanks = 4;

/// With windows the ranks of a host combine by stores, without them by NCCL.
enum class Inside { kNccl, kPeer };

/// Skips if NCCL would see two ranks on one GPU of a host, or there are no windows.
class HierarchicalCombine : public testing::TestWithParam<Inside> {
 protected:
  void SetUp() override {
    comm_ = make_mpi_communicator();
    comm_->set_deadline(kTestDeadline);
    const int devices = cuda_device_count();
    const bool has_gpus = devices >= gpus_for_nccl(kRanks, kHosts.per_host);
    if (comm_->size() != kRanks || !has_gpus) {
      GTEST_SKIP()
          << "wants four ranks, and a GPU for each, or NCCL_HOSTID and a GPU for each of a "
             "host";
    }
    const Device device{DeviceKind::kCuda, comm_->rank().value % devices};
    check(cudaSetDevice(device.index));
    const bool by_peer = GetParam() == Inside::kPeer;
    group_ = std::make_unique<DeviceGroup>(comm_, device, true, by_peer ? kWindow : 0);
    group_->set_hosts(kHosts);
    const std::vector<int> windows = all_gather_value(*comm_, group_->host_window() ? 1 : 0);
    if (by_peer && std::ranges::find(windows, 0) != windows.end()) {
      GTEST_SKIP() << "no windows in a host; in the group: " << group_->no_peer_window();
    }
    ASSERT_NE(group_->nccl(), nullptr);
    stream_ = std::make_unique<OwnStream>();
    ways_ = std::make_unique<CombineWays>(*group_);
    way_ = ways_->make(WayKind::kHierarchical);
  }
  void TearDown() override {
    way_.reset();
    ways_.reset();
    stream_.reset();
    group_.reset();
  }

  int me() const { return comm_->rank().value; }
  void plan(CombineCase& test) {
    way_->plan({test.tokens, test.heads, test.dim}, options_of(test, CombineStrategy::kAuto),
               stream_->view());
  }
  /// No rank frees or allocates memory while another one's kernel may wait for it.
  Result combine(CombineCase& test, Dtype dtype = Dtype::kFloat32, std::int64_t gap = 0) {
    const DeviceCase on_device(test, me(), dtype, gap);
    plan(test);
    way_->check_run(on_device.partial(), on_device.output());
    barrier(*comm_);
    way_->run(on_device.partial(), on_device.output(), stream_->view());
    group_->wait(stream_->view(), "test combine");
    barrier(*comm_);
    return on_device.result();
  }

  static constexpr std::size_t kWindow = std::size_t{32} << 20;
  std::shared_ptr<Communicator> comm_;
  std::unique_ptr<DeviceGroup> group_;
  std::unique_ptr<OwnStream> stream_;
  std::unique_ptr<CombineWays> ways_;
  std::unique_ptr<CombineWay> way_;
};

TEST_P(HierarchicalCombine, MatchesFloat64) {
  const std::uint64_t seed = agreed_seed(*comm_);
  SCOPED_TRACE(seed_trace(seed));
  std::mt19937_64 random(seed);
  int taken = 0;
  for (int i = 0; taken < steps_or(60) && i < 10000; ++i) {
    CombineCase test = random_case(random, kRanks);
    if (!takes_hosts(kHosts, {test.tokens, test.heads, test.dim}, test.scatter)) continue;
    SCOPED_TRACE("case " + std::to_string(i) + ": " + test.describe());
    expect_close(combine(test, Dtype::kFloat32, i % 3), expected_of(test, me()), test.dim);
    ++taken;
  }
  EXPECT_EQ(taken, steps_or(60));
}

/// Gaps in the partial, of heads and of tokens, and rows of NaN.
TEST_P(HierarchicalCombine, KnowsHeadsOfAllRanksAndRowsOfNan) {
  for (const std::int64_t gap : {0, 2}) {
    CombineCase test = full_case(kRanks, 7, 2 * kRanks, 16, Scatter::kHeads);
    for (HeldPartial& partial : test.partials) partial = with_gap(partial, gap);
    for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16}) {
      const Result result = combine(test, dtype);
      if (dtype == Dtype::kFloat32) expect_close(result, expected_of(test, me()), 16);
    }
  }
  CombineCase unusual = unusual_case(kRanks, Scatter::kAll);
  expect_close(combine(unusual), expected_of(unusual, me()), unusual.dim);
}

/// A captured combine reads new partials at each replay and gives the eager bits.
TEST_P(HierarchicalCombine, ReplaysInAGraph) {
  for (const Scatter scatter : {Scatter::kHeads, Scatter::kAll}) {
    CombineCase test = full_case(kRanks, 24, 8, 128, scatter);
    SCOPED_TRACE(test.describe());
    const Result eager = combine(test);
    expect_close(eager, expected_of(test, me()), test.dim);
    const std::uint64_t generation = way_->generation();
    const std::size_t bytes = way_->workspace_bytes();
    DeviceCase on_device(test, me());
    {
      const Graph graph(stream_->get(), [&] {
        way_->run(on_device.partial(), on_device.output(), stream_->view());
      });
      for (int turn = 0; turn < 3; ++turn) {
        on_device.poison();
        barrier(*comm_);
        for (int replay = 0; replay < steps_or(25); ++replay) graph.launch(stream_->get());
        group_->wait(stream_->view(), "replay");
        barrier(*comm_);
        ASSERT_TRUE(same_bits(on_device.result(), eager)) << "turn " << turn;
      }
    }
    EXPECT_EQ(way_->workspace_bytes(), bytes);
    plan(test);
    EXPECT_EQ(way_->generation(), generation) << "the same plan";
    CombineCase larger = full_case(kRanks, 25, 8, 128, scatter);
    plan(larger);
    EXPECT_NE(way_->generation(), generation) << "another shape";
  }
}

/// Rows that do not fit into a window go by NCCL, and the next that fit by peer again.
TEST_P(HierarchicalCombine, TakesRowsOfAnySize) {
  for (const std::int64_t tokens : {4, 3000, 4}) {
    CombineCase test = full_case(kRanks, tokens, 8, 128, Scatter::kAll);
    SCOPED_TRACE(test.describe());
    expect_close(combine(test), expected_of(test, me()), test.dim);
  }
}

/// Rank 3 is late for rank 2, of its host. Rank 0 gets the rows of rank 2, which are not merged.
TEST_P(HierarchicalCombine, RowsThatWereNotMergedAreNan) {
  using namespace std::chrono_literals;
  if (GetParam() != Inside::kPeer) GTEST_SKIP() << "NCCL's kernels do not give up";
  CombineCase test = full_case(kRanks, 4, 8, 64, Scatter::kHeads);
  combine(test);
  const DeviceCase on_device(test, me());
  barrier(*comm_);
  comm_->set_deadline(me() == 0 ? 10s : 2s);
  if (me() != 3) way_->run(on_device.partial(), on_device.output(), stream_->view());
  if (me() == 2) {
    try {
      group_->wait(stream_->view(), "one token");
      ADD_FAILURE() << "nobody was missing";
    } catch (const Timeout& timeout) {
      EXPECT_EQ(timeout.waiter(), Rank{2});
      EXPECT_EQ(timeout.late(), std::vector{Rank{3}});
    }
  } else if (me() == 1) {  // waits for the rows of rank 3
    EXPECT_THROW(group_->wait(stream_->view(), "one token"), Timeout);
  } else if (me() == 0) {
    try {
      group_->wait(stream_->view(), "one token");
      for (const float value : on_device.result().o) ASSERT_TRUE(std::isnan(value));
    } catch (const Error&) {
      // Rank 2 may have broken its group before its rows had left.
    }
  }
  comm_->set_deadline(2s);
}

TEST_P(HierarchicalCombine, RefusesWhatItCannotDivide) {
  EXPECT_THROW(way_->plan({4, 6, 16}, {.scatter = Scatter::kHeads}, stream_->view()),
               InvalidArgument);
  EXPECT_THROW(way_->plan({4, 8, 16}, {.scatter = Scatter::kTokens}, stream_->view()),
               InvalidArgument);
  EXPECT_THROW(way_->plan({4, 8, 16},
                          {.scatter = Scatter::kAll, .strategy = CombineStrategy::kReduceScatter},
                          stream_->view()),
               InvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(Inside, HierarchicalCombine, testing::Values(Inside::kNccl, Inside::kPeer),
                         [](const auto& test) {
                           return test.param == Inside::kNccl ? "Nccl" : "Peer";
                         });

}  // namespace
}  // namespace kvmesh::test
