#include "tests/contracts/attention_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Gpus, AttentionContract, each_place(CudaPlaces()), param_name);
INSTANTIATE_TEST_SUITE_P(GpuFormats, AttentionContract, each_place(CudaFormats()), param_name);

}  // namespace kvmesh::test
