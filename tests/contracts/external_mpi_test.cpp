#include "tests/contracts/external_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TYPED_TEST_SUITE_P(Processes, ExternalContract, MpiPlaces, PlaceNames);

}  // namespace kvmesh::test
