#include "tests/contracts/attention_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TYPED_TEST_SUITE_P(Gpus, AttentionContract, CudaPlaces, PlaceNames);
INSTANTIATE_TYPED_TEST_SUITE_P(Reproducible, AttentionContract, ReproducibleCudaPlaces, PlaceNames);

}  // namespace kvmesh::test
