#include "tests/contracts/sequences_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Gpus, SequencesContract, each_place(CudaPlaces()), param_name);
INSTANTIATE_TEST_SUITE_P(GpuFormats, SequencesContract, each_place(CudaFormats()), param_name);

}  // namespace kvmesh::test
