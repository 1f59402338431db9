// The combine on GPUs over NCCL, under mpirun, against float64.
#include <numbers>

#include "tests/comm/combine/ways.hpp"
#include "tests/gpu/device_combine_run.hpp"
#include "tests/support/nccl_hosts.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/steps.hpp"

namespace kvmesh::test {
namespace {

constexpr std::array kStrategies = {CombineStrategy::kAllToAll, CombineStrategy::kReduceScatter,
                                    CombineStrategy::kAllReduce};

/// One group for all tests: making one takes a second. Skips if NCCL would see two ranks on one
/// GPU.
class NcclCombine : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    comm_ = make_mpi_communicator();
    comm_->set_deadline(kTestDeadline);
    const int devices = cuda_device_count();
    if (devices < gpus_for_nccl(comm_->size(), 1)) return;
    const int device = comm_->rank().value % devices;
    check(cudaSetDevice(device));
    group_ = std::make_unique<NcclGroup>(*comm_, device);
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
    if (!group_) GTEST_SKIP() << "fewer GPUs than ranks";
  }

  int me() const { return comm_->rank().value; }

  /// Plans and runs once.
  Result combine(DeviceCombiner& combiner, CombineCase& test, CombineStrategy strategy,
                 Dtype dtype = Dtype::kFloat32, std::int64_t gap = 0) {
    const DeviceCase on_device(test, me(), dtype, gap);
    combiner.plan(test.tokens, test.heads, test.dim, options_of(test, strategy), stream_->view());
    combiner.run(on_device.partial(), on_device.output(), stream_->view());
    group_->wait(stream_->view(), "test combine");
    return on_device.result();
  }

  static inline std::unique_ptr<Communicator> comm_;
  static inline std::unique_ptr<NcclGroup> group_;
  static inline std::unique_ptr<OwnStream> stream_;
};

TEST_F(NcclCombine, MatchesFloat64) {
  const std::uint64_t seed = agreed_seed(*comm_);
  SCOPED_TRACE(seed_trace(seed));
  std::mt19937_64 random(seed);
  DeviceCombiner combiner(*group_);
  for (int i = 0; i < 100; ++i) {
    CombineCase test = random_case(random, comm_->size());
    SCOPED_TRACE("case " + std::to_string(i) + ": " + test.describe());
    for (CombineStrategy strategy : kStrategies) {
      SCOPED_TRACE(name(strategy));
      const Result result = combine(combiner, test, strategy, Dtype::kFloat32, i % 5);
      expect_close(result, expected_of(test, me()), test.dim);
    }
  }
}

TEST_F(NcclCombine, ConvertsTheOutput) {
  const std::uint64_t seed = agreed_seed(*comm_);
  SCOPED_TRACE(seed_trace(seed));
  std::mt19937_64 random(seed);
  DeviceCombiner combiner(*group_);
  for (int i = 0; i < 20; ++i) {
    CombineCase test = random_case(random, comm_->size());
    SCOPED_TRACE("case " + std::to_string(i) + ": " + test.describe());
    for (CombineStrategy strategy : kStrategies) {
      const Result exact = combine(combiner, test, strategy);
      for (Dtype dtype : {Dtype::kFloat16, Dtype::kBFloat16}) {
        Result rounded = exact;
        for (float& value : rounded.o) {
          value = dtype == Dtype::kFloat16 ? float16_to_float(float_to_float16(value))
                                           : bfloat16_to_float(float_to_bfloat16(value));
        }
        EXPECT_TRUE(same_bits(combine(combiner, test, strategy, dtype, 4 * (i % 2)), rounded))
            << name(dtype) << " by " << name(strategy);
      }
    }
  }
}

TEST_F(NcclCombine, NanRowIsNotEmpty) {
  DeviceCombiner combiner(*group_);
  for (Scatter scatter : {Scatter::kAll, Scatter::kTokens, Scatter::kHeads}) {
    CombineCase test = unusual_case(comm_->size(), scatter);
    SCOPED_TRACE(test.describe());
    for (CombineStrategy strategy : kStrategies) {
      SCOPED_TRACE(name(strategy));
      expect_close(combine(combiner, test, strategy), expected_of(test, me()), test.dim);
    }
  }
}

TEST_F(NcclCombine, MergesLargeProblemsAsTheHostDoes) {
  DeviceCombiner combiner(*group_);
  WaysOfRank host(*comm_, WayKind::kHost);
  for (Scatter scatter : {Scatter::kAll, Scatter::kTokens, Scatter::kHeads}) {
    CombineCase test = full_case(comm_->size(), 300, 16, 128, scatter);
    SCOPED_TRACE(test.describe());
    for (CombineStrategy strategy : kStrategies) {
      expect_close(combine(combiner, test, strategy), expected_of(test, me()), test.dim);
    }
    expect_close(run_case(*host, test, me(), CombineStrategy::kAuto), expected_of(test, me()),
                 test.dim);
  }
}

TEST_F(NcclCombine, TakesPartialsInBaseTwo) {
  DeviceCombiner combiner(*group_);
  CombineCase test = unusual_case(comm_->size(), Scatter::kHeads);
  SCOPED_TRACE(test.describe());
  const Expected expected = expected_of(test, me());
  for (HeldPartial& held : test.partials) {
    for (float& lse : held.lse_values) lse /= std::numbers::ln2_v<float>;
  }
  const DeviceCase on_device(test, me());
  combiner.plan(test.tokens, test.heads, test.dim, options_of(test, CombineStrategy::kAllToAll),
                stream_->view());
  const Partial mine = on_device.partial();
  combiner.run(to_natural(Base2Partial{mine.o, mine.lse}, stream_->view()), on_device.output(),
               stream_->view());
  group_->wait(stream_->view(), "test combine");
  expect_close(on_device.result(), expected, test.dim);
}

/// A captured combine reads new partials at each replay and gives the eager bits.
TEST_F(NcclCombine, ReplaysInAGraph) {
  for (CombineStrategy strategy : kStrategies) {
    for (Scatter scatter : {Scatter::kAll, Scatter::kTokens, Scatter::kHeads}) {
      CombineCase test = full_case(comm_->size(), 24, 8, 128, scatter);
      SCOPED_TRACE(std::string(name(strategy)) + ", " + test.describe());
      DeviceCombiner combiner(*group_);
      const Result eager = combine(combiner, test, strategy);
      const std::uint64_t generation = combiner.generation();
      const std::size_t bytes = combiner.workspace_bytes();
      DeviceCase on_device(test, me());
      const Graph graph(stream_->get(), [&] {
        combiner.run(on_device.partial(), on_device.output(), stream_->view());
      });
      for (int turn = 0; turn < 4; ++turn) {
        on_device.poison();
        for (int replay = 0; replay < steps_or(25); ++replay) graph.launch(stream_->get());
        group_->wait(stream_->view(), "replay");
        ASSERT_TRUE(same_bits(on_device.result(), eager)) << "turn " << turn;
      }
      EXPECT_EQ(combiner.workspace_bytes(), bytes);
      combiner.plan(24, 8, 128, options_of(test, strategy), stream_->view());
      EXPECT_EQ(combiner.generation(), generation) << "the same plan";
      combiner.plan(25, 8, 128, options_of(test, strategy), stream_->view());
      EXPECT_NE(combiner.generation(), generation) << "another shape";
    }
  }
}

/// With the reducing strategies a mask may change under a captured graph.
TEST_F(NcclCombine, AGraphFollowsTheMask) {
  CombineCase test = full_case(comm_->size(), 12, 4, 64, Scatter::kHeads);
  const auto mask = [&](int shift) {
    test.participation.emplace(test.tokens, comm_->size());
    for (std::int64_t t = 0; t < test.tokens; ++t) {
      test.participation->add(t, Rank{static_cast<int>(t + shift) % comm_->size()});
      if (t % 3 == shift % 3) {
        for (int r = 0; r < comm_->size(); ++r) test.participation->add(t, Rank{r});
      }
    }
  };
  mask(0);
  DeviceCombiner combiner(*group_);
  combine(combiner, test, CombineStrategy::kReduceScatter);
  const std::uint64_t generation = combiner.generation();
  DeviceCase first(test, me());
  const Graph graph(stream_->get(),
                    [&] { combiner.run(first.partial(), first.output(), stream_->view()); });
  for (int shift = 0; shift < 4; ++shift) {
    mask(shift);
    combiner.plan(test.tokens, test.heads, test.dim,
                  options_of(test, CombineStrategy::kReduceScatter), stream_->view());
    EXPECT_EQ(combiner.generation(), generation);
    first.poison();
    graph.launch(stream_->get());
    group_->wait(stream_->view(), "replay");
    expect_close(first.result(), expected_of(test, me()), test.dim);
  }
}

TEST_F(NcclCombine, GivesTheSameBitsEachTime) {
  DeviceCombiner combiner(*group_);
  CombineCase test = full_case(comm_->size(), 33, 7, 96, Scatter::kHeads);
  const Result first = combine(combiner, test, CombineStrategy::kAllToAll);
  for (int i = 0; i < 5; ++i) {
    DeviceCombiner fresh(*group_);
    EXPECT_TRUE(same_bits(combine(fresh, test, CombineStrategy::kAllToAll), first));
  }
}

TEST_F(NcclCombine, WorksOverABorrowedCommunicator) {
  NcclGroup borrowed = NcclGroup::borrow(group_->handle());
  EXPECT_EQ(borrowed.rank(), comm_->rank());
  EXPECT_EQ(borrowed.size(), comm_->size());
  EXPECT_EQ(borrowed.device(), group_->device());
  DeviceCombiner combiner(borrowed);
  CombineCase test = full_case(comm_->size(), 9, 8, 64, Scatter::kAll);
  expect_close(combine(combiner, test, CombineStrategy::kAuto), expected_of(test, me()), test.dim);
}

TEST_F(NcclCombine, GroupsFromSplitCommunicators) {
  if (comm_->size() < 2) GTEST_SKIP() << "one rank";
  const std::unique_ptr<Communicator> part = comm_->split(me() % 2, 0);
  NcclGroup group(*part, group_->device());
  EXPECT_EQ(group.size(), part->size());
  DeviceCombiner combiner(group);
  CombineCase test = full_case(part->size(), 5, 8, 64, Scatter::kAll);
  const int rank = part->rank().value;
  const DeviceCase on_device(test, rank);
  combiner.plan(test.tokens, test.heads, test.dim, options_of(test, CombineStrategy::kAuto),
                stream_->view());
  combiner.run(on_device.partial(), on_device.output(), stream_->view());
  group.wait(stream_->view(), "test combine");
  expect_close(on_device.result(), expected_of(test, rank), test.dim);
  group.close();
}

TEST_F(NcclCombine, RejectsInvalidArgumentsBeforeSending) {
  DeviceCombiner combiner(*group_);
  CombineCase test = full_case(comm_->size(), 4, 8, 16, Scatter::kAll);
  const DeviceCase on_device(test, me());
  const Partial mine = on_device.partial();
  const CombineOutput output = on_device.output();
  const auto refuses = [&](const Partial& partial, const CombineOutput& to) {
    EXPECT_THROW(combiner.run(partial, to, stream_->view()), InvalidArgument);
  };
  refuses(mine, output);  // no plan yet
  combiner.plan(4, 8, 16, {}, stream_->view());
  refuses(test.partials[0].view(), output);  // in host memory
  Partial other = mine;
  other.o.shape[0] = 5;
  refuses(other, output);
  other = mine;
  other.lse.strides[1] = 2;
  refuses(other, output);
  refuses(mine, {TensorView{}, output.lse});
  EXPECT_THROW(combiner.plan(-1, 8, 16, {}, stream_->view()), InvalidArgument);
  combiner.run(mine, output, stream_->view());
  group_->wait(stream_->view(), "test combine");
  expect_close(on_device.result(), on_device.expected(), test.dim);
}

TEST(NcclVersion, IsKnown) { EXPECT_FALSE(nccl_version().empty()); }

}  // namespace
}  // namespace kvmesh::test
