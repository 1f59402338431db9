#include "tests/contracts/fixed_split_contract.hpp"

namespace kvmesh::test {
namespace {

/// Shapes for the families of kernels that a GPU has; tokens of latent pages are gathered in the
/// last but one.
struct FixedSplitSizes {
  static constexpr const char* kName = "FixedSplit";
  static constexpr int kRandomCases = 0;
  static constexpr ContractShape kSmall = kSmallShape;
  static std::vector<ContractShape> shapes() {
    return {{8, 2, 128, 128, 16, Dtype::kBFloat16},
            {16, 2, 192, 128, 64, Dtype::kFloat16},
            {8, 2, 128, 128, 16, Dtype::kFloat8E4M3},
            {8, 2, 64, 64, 24, Dtype::kBFloat16},
            {16, 1, 576, 512, 64, Dtype::kBFloat16, PageKind::kLatent},
            {128, 1, 576, 512, 64, Dtype::kBFloat16, PageKind::kLatent},
            {16, 1, 576, 512, 64, Dtype::kFloat8E4M3, PageKind::kLatent},
            {16, 1, 576, 512, 4, Dtype::kBFloat16, PageKind::kLatent},
            {4, 2, 20, 12, 4, Dtype::kFloat32}};
  }
  static std::vector<Dtype> stored() { return {}; }
};

using GpuPlaces = testing::Types<OnCuda<MpiRanks, FixedSplitSizes>>;
INSTANTIATE_TEST_SUITE_P(Gpus, FixedSplitContract, each_place(GpuPlaces()), param_name);

}  // namespace
}  // namespace kvmesh::test
