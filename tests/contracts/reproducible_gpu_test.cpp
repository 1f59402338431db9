// The contracts on a reproducible cache of GPUs, for which CheckedCache expects the bits of one
// rank on the same GPU, and the other guarantees of such a cache.
#include <algorithm>
#include <cmath>
#include <iostream>

#include "tests/contracts/attention_contract.hpp"
#include "tests/contracts/on_each_placement.hpp"
#include "tests/contracts/reproducible_case.hpp"
#include "tests/contracts/sequences_contract.hpp"

namespace kvmesh::test {
namespace {

/// 16-bit pages, of which the chunks have 4, 16, 1 and 8 keys.
struct ExactSizes {
  static constexpr const char* kName = "Exact";
  static constexpr int kRandomCases = 4;
  static constexpr ContractShape kSmall{6, 2, 24, 16, 4, Dtype::kBFloat16};
  static std::vector<ContractShape> shapes() {
    return {{8, 1, 128, 128, 16, Dtype::kFloat16},
            {8, 2, 64, 128, 1, Dtype::kBFloat16},
            {4, 4, 256, 256, 8, Dtype::kBFloat16},
            {16, 1, 576, 512, 64, Dtype::kBFloat16, PageKind::kLatent},
            {14, 2, 40, 72, 24, Dtype::kFloat16}};
  }
};

template <class Ranks>
struct ReproducibleOnCuda : OnCuda<Ranks, ExactSizes> {
  static constexpr bool kReproducible = true;
  static CacheOptions small() {
    CacheOptions options = OnCuda<Ranks, ExactSizes>::small();
    options.reproducible = true;
    return options;
  }
  static std::vector<Dtype> stored() { return {Dtype::kFloat16, Dtype::kBFloat16}; }
};

using GpuPlaces = testing::Types<ReproducibleOnCuda<MpiRanks>>;
INSTANTIATE_TEST_SUITE_P(Reproducible, AttentionContract, each_place(GpuPlaces()), param_name);
INSTANTIATE_TEST_SUITE_P(Reproducible, SequencesContract, each_place(GpuPlaces()), param_name);

MeshOptions on_gpu() { return {.threads = 1, .device = DeviceChoice::kCuda}; }

TEST(ReproducibleOnGpus, BitsDoNotDependOnRanksNorOnHowAPromptIsFed) {
  Mesh mesh = Mesh::from_launcher(on_gpu());
  MeshOptions same_gpu = on_gpu();
  same_gpu.gpu = mesh.device().index;
  same_gpu.makes_nccl = false;
  Mesh single(make_single_communicator(), same_gpu);
  const std::vector<float> want =
      outputs_of(single, reproducible_model(16, Placement::kBalanced), ReproduciblePrompt::kTokens);
  EXPECT_EQ(std::ranges::count_if(want, [](float x) { return std::isnan(x); }), 0);
  expect_same_bits(mesh, want);
}

// Both kinds of caches round each weight to float16, once, so their largest errors are of one size;
// sums in float32 would add to it, exact ones do not.
TEST(ReproducibleOnGpus, AreAsExactAsOtherCaches) {
  const auto [ordinary, reproducible] =
      largest_errors(on_gpu(), small_cache({8, 2, 64, 64, 16, Dtype::kFloat16}));
  std::cout << "largest errors: " << reproducible << ", of another cache " << ordinary << ", ratio "
            << reproducible / ordinary << '\n';
  EXPECT_LE(reproducible, 1.25 * ordinary);
}

TEST(ReproducibleOnGpus, RefusePagesWithoutTensorCores) {
  Mesh mesh = Mesh::from_launcher(on_gpu());
  CacheOptions options = reproducible_model(16, Placement::kBalanced);
  options.dtype = Dtype::kFloat32;
  EXPECT_THROW(KvCache(mesh, options), Unsupported);
  options.dtype = Dtype::kFloat16;
  options.k_dim = 20;
  EXPECT_THROW(KvCache(mesh, options), Unsupported);
}

TEST(ReproducibleOnGpus, RefusePartials) { expect_no_partials(on_gpu()); }

}  // namespace
}  // namespace kvmesh::test
