#include "tests/contracts/sequences_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TYPED_TEST_SUITE_P(Gpus, SequencesContract, CudaPlaces, PlaceNames);
INSTANTIATE_TYPED_TEST_SUITE_P(Reproducible, SequencesContract, ReproducibleCudaPlaces, PlaceNames);

}  // namespace kvmesh::test
