// The combine of ranks that share a GPU, by way of the host: ranks are threads.
#include "comm/combine/choice/combine_ways.hpp"
#include "tests/gpu/device_combine_run.hpp"
#include "tests/support/ranks.hpp"

namespace kvmesh::test {
namespace {

class StagedCombine : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "no GPU";
  }
};

/// Plans and runs each case on every rank and compares with float64. Output rows have gaps.
void combine_all(int ranks, const std::function<CombineCase(std::mt19937_64&, int)>& next) {
  run_loopback(ranks, [&](Communicator& comm) {
    check(cudaSetDevice(0));
    const std::uint64_t seed = agreed_seed(comm);
    SCOPED_TRACE(seed_trace(seed));
    std::mt19937_64 random(seed);
    const int me = comm.rank().value;
    DeviceGroup group(std::shared_ptr<Communicator>(&comm, [](Communicator*) {}),
                      {DeviceKind::kCuda, 0}, false);
    CombineWays ways(group);
    EXPECT_EQ(choose_way(ways.means(), {}, {}, false).way, WayKind::kStaged);
    const std::unique_ptr<CombineWay> way = ways.make(WayKind::kStaged);
    const OwnStream stream;
    for (int i = 0; i < 20; ++i) {
      CombineCase test = next(random, i);
      SCOPED_TRACE("case " + std::to_string(i) + ": " + test.describe());
      for (CombineStrategy strategy :
           {CombineStrategy::kAllToAll, CombineStrategy::kReduceScatter}) {
        const DeviceCase on_device(test, me, Dtype::kFloat32, i % 3);
        way->plan({test.tokens, test.heads, test.dim}, options_of(test, strategy), stream.view());
        way->run(on_device.partial(), on_device.output(), stream.view());
        expect_close(on_device.result(), on_device.expected(), test.dim);
      }
    }
  });
}

TEST_P(StagedCombine, MatchesFloat64) {
  combine_all(GetParam(),
              [](std::mt19937_64& random, int) { return random_case(random, GetParam()); });
}

TEST_P(StagedCombine, NanRowIsNotEmpty) {
  constexpr Scatter kScatters[] = {Scatter::kAll, Scatter::kTokens, Scatter::kHeads};
  combine_all(GetParam(),
              [&](std::mt19937_64&, int i) { return unusual_case(GetParam(), kScatters[i % 3]); });
}

INSTANTIATE_TEST_SUITE_P(Ranks, StagedCombine, testing::Values(1, 2, 4));

}  // namespace
}  // namespace kvmesh::test
