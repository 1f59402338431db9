#include "tests/contracts/layer_groups_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Processes, LayerGroupsContract, each_place(MpiPlaces()), param_name);

}  // namespace kvmesh::test
