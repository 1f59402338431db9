// The hierarchical combine over NCCL, under mpirun, against float64: ranks 0 and 1 are one host,
// ranks 2 and 3 another.
#include <cstdlib>

#include "comm/combine/hierarchical/hierarchical_way.hpp"
#include "tests/gpu/device_combine_run.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/steps.hpp"

namespace kvmesh::test {
namespace {

constexpr HostLayout kHosts{.hosts = 2, .per_host = 2};
constexpr int kRanks = 4;

/// One group for all tests. Skips if NCCL would see two ranks on one GPU.
class HierarchicalCombine : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    comm_ = make_mpi_communicator();
    comm_->set_deadline(kTestDeadline);
    const int devices = cuda_device_count();
    const bool has_gpus = devices >= (std::getenv("NCCL_HOSTID") ? kHosts.per_host : kRanks);
    if (comm_->size() != kRanks || !has_gpus) return;
    device_ = {DeviceKind::kCuda, comm_->rank().value % devices};
    check(cudaSetDevice(device_.index));
    group_ = std::make_unique<NcclGroup>(*comm_, device_.index);
    group_->set_deadline(kTestDeadline);
    stream_ = std::make_unique<OwnStream>();
  }
  static void TearDownTestSuite() {
    if (group_) group_->close();
    stream_.reset();
    group_.reset();
    comm_.reset();
  }
  void SetUp() override {
    if (!group_)
      GTEST_SKIP()
          << "wants four ranks, and a GPU for each, or NCCL_HOSTID and a GPU for each of a host";
    way_ = std::make_unique<HierarchicalWay>(comm_->rank(), kHosts, device_,
                                             stages_over_nccl(*group_, kHosts));
  }
  void TearDown() override {
    if (group_) barrier(*comm_);  // no rank frees memory while others send
    way_.reset();
  }

  int me() const { return comm_->rank().value; }
  void plan(CombineCase& test) {
    way_->plan({test.tokens, test.heads, test.dim}, options_of(test, CombineStrategy::kAuto),
               stream_->view());
  }
  Result combine(CombineCase& test, Dtype dtype = Dtype::kFloat32, std::int64_t gap = 0) {
    const DeviceCase on_device(test, me(), dtype, gap);
    plan(test);
    way_->check_run(on_device.partial(), on_device.output());
    way_->run(on_device.partial(), on_device.output(), stream_->view());
    group_->wait(stream_->view(), "test combine");
    return on_device.result();
  }

  static inline std::unique_ptr<Communicator> comm_;
  static inline std::unique_ptr<NcclGroup> group_;
  static inline std::unique_ptr<OwnStream> stream_;
  static inline Device device_;
  std::unique_ptr<HierarchicalWay> way_;
};

TEST_F(HierarchicalCombine, MatchesFloat64) {
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
TEST_F(HierarchicalCombine, KnowsHeadsOfAllRanksAndRowsOfNan) {
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
TEST_F(HierarchicalCombine, ReplaysInAGraph) {
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
        for (int replay = 0; replay < steps_or(25); ++replay) graph.launch(stream_->get());
        group_->wait(stream_->view(), "replay");
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

TEST_F(HierarchicalCombine, RefusesWhatItCannotDivide) {
  EXPECT_THROW(way_->plan({4, 6, 16}, {.scatter = Scatter::kHeads}, stream_->view()),
               InvalidArgument);
  EXPECT_THROW(way_->plan({4, 8, 16}, {.scatter = Scatter::kTokens}, stream_->view()),
               InvalidArgument);
  EXPECT_THROW(way_->plan({4, 8, 16},
                          {.scatter = Scatter::kAll, .strategy = CombineStrategy::kReduceScatter},
                          stream_->view()),
               InvalidArgument);
}

}  // namespace
}  // namespace kvmesh::test
