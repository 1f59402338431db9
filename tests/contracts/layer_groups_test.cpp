#include "tests/contracts/layer_groups_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Loopback, LayerGroupsContract, each_place(LoopbackPlaces()), param_name);

}  // namespace kvmesh::test
