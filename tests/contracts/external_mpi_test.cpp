#include "tests/contracts/external_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Processes, ExternalContract, each_place(MpiPlaces()), param_name);

}  // namespace kvmesh::test
