#include "tests/contracts/attention_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Gpus, AttentionContract, each_of(CudaPlaces()), place_name);

}  // namespace kvmesh::test
