#include "tests/contracts/external_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Gpus, ExternalContract, each_place(CudaPlaces()), param_name);

}  // namespace kvmesh::test
