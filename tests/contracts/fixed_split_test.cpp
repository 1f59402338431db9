#include "tests/contracts/fixed_split_contract.hpp"

namespace kvmesh::test {
namespace {

/// Pages that do not divide 128 tokens, too.
struct FixedSplitSizes {
  static constexpr const char* kName = "FixedSplit";
  static constexpr int kRandomMods = 0;
  static constexpr int kRandomCases = 0;
  static constexpr ContractShape kSmall = kSmallShape;
  static std::vector<ContractShape> shapes() {
    return {{4, 2, 16, 16, 16, Dtype::kFloat32},
            {4, 1, 16, 16, 24, Dtype::kFloat8E4M3},
            {4, 1, 24, 16, 4, Dtype::kBFloat16, PageKind::kLatent}};
  }
  static std::vector<Dtype> stored() { return {}; }
};

using Places = testing::Types<OnCpu<LoopbackRanks<1>, FixedSplitSizes>,
                              OnCpu<LoopbackRanks<3>, FixedSplitSizes>>;
INSTANTIATE_TEST_SUITE_P(Loopback, FixedSplitContract, each_place(Places()), param_name);

}  // namespace
}  // namespace kvmesh::test
