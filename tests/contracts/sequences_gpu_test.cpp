#include "tests/contracts/sequences_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Gpus, SequencesContract, each_place(CudaPlaces()), param_name);

}  // namespace kvmesh::test
