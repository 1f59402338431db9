#include "tests/contracts/sequences_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TYPED_TEST_SUITE_P(Gpus, SequencesContract, CudaPlaces, PlaceNames);

}  // namespace kvmesh::test
