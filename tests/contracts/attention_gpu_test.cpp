#include "tests/contracts/attention_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TYPED_TEST_SUITE_P(Gpus, AttentionContract, CudaPlaces, PlaceNames);

}  // namespace kvmesh::test
