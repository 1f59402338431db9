// Pools and copies among processes on GPUs, which map one another's memory by CUDA IPC: ranks that
// share a GPU, and ranks with a GPU each.
#include "tests/runtime/memory/page_transfer_contract.hpp"
#include "tests/runtime/memory/pools_contract.hpp"

namespace kvmesh::test {

using PoolPlaces = testing::Types<OnCuda<MpiRanks, Float32Sizes>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Gpus, PoolsContract, PoolPlaces, PlaceNames);
INSTANTIATE_TYPED_TEST_SUITE_P(Gpus, PageTransferContract, PoolPlaces, PlaceNames);

}  // namespace kvmesh::test
