// The contracts on a reproducible cache, for which CheckedCache expects one rank's bits, and the
// other guarantees of such a cache.
#include <algorithm>
#include <cmath>

#include "tests/contracts/attention_contract.hpp"
#include "tests/contracts/on_each_placement.hpp"
#include "tests/contracts/reproducible_case.hpp"
#include "tests/contracts/sequences_contract.hpp"

namespace kvmesh::test {
namespace {

template <class Ranks, class Sizes = KvSizes>
struct ReproducibleOnCpu : OnCpu<Ranks, Sizes> {
  static constexpr int kRandomMods = std::min(10, Sizes::kRandomMods);
  static constexpr int kRandomCases = std::min(8, Sizes::kRandomCases);
  static constexpr bool kReproducible = true;
  static CacheOptions small() {
    CacheOptions options = OnCpu<Ranks, Sizes>::small();
    options.reproducible = true;
    return options;
  }
};

using ReproduciblePlaces =
    testing::Types<ReproducibleOnCpu<LoopbackRanks<1>>, ReproducibleOnCpu<LoopbackRanks<2>>,
                   ReproducibleOnCpu<LoopbackRanks<3>>, ReproducibleOnCpu<LoopbackRanks<4>>,
                   ReproducibleOnCpu<LoopbackRanks<8>>,
                   ReproducibleOnCpu<LoopbackRanks<3>, LatentSizes>>;
INSTANTIATE_TEST_SUITE_P(Reproducible, AttentionContract, each_place(ReproduciblePlaces()),
                         param_name);
INSTANTIATE_TEST_SUITE_P(Reproducible, SequencesContract, each_place(ReproduciblePlaces()),
                         param_name);

TEST(ReproducibleCache, BitsDoNotDependOnRanksNorOnHowAPromptIsFed) {
  std::vector<float> want;
  run_on_threads(1, [&](Mesh& mesh) {
    want =
        outputs_of(mesh, reproducible_model(16, Placement::kBalanced), ReproduciblePrompt::kTokens);
  });
  EXPECT_EQ(std::ranges::count_if(want, [](float x) { return std::isnan(x); }), 0);
  for (int ranks : {1, 3}) {
    run_on_threads(ranks, [&](Mesh& mesh) { expect_same_bits(mesh, want); }, {.threads = 1});
  }
}

constexpr MeshOptions kOneThread{.threads = 1, .device = DeviceChoice::kCpu};

TEST(ReproducibleCache, IsAsExactAsAnyCache) {
  CacheOptions options = small_cache(kSmallShape);
  options.page_size = 16;
  const auto [ordinary, reproducible] = largest_errors(kOneThread, options);
  EXPECT_LE(reproducible, ordinary);
}

TEST(ReproducibleCache, RejectsPartials) { expect_no_partials(kOneThread); }

}  // namespace
}  // namespace kvmesh::test
