#include "tests/contracts/sequences_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Gpus, SequencesContract, each_of(CudaPlaces()), place_name);

}  // namespace kvmesh::test
