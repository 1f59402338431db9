#include "tests/contracts/layer_groups_contract.hpp"

namespace kvmesh::test {

using GroupPlaces = testing::Types<OnCuda<MpiRanks, BFloat16Sizes>>;
INSTANTIATE_TEST_SUITE_P(Gpus, LayerGroupsContract, each_place(GroupPlaces()), param_name);

}  // namespace kvmesh::test
