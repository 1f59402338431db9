#include "tests/contracts/external_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Gpus, ExternalContract, each_of(CudaPlaces()), place_name);

}  // namespace kvmesh::test
