// Pools and copies among ranks that are threads.
#include "tests/runtime/cache/moves/page_transfer_contract.hpp"
#include "tests/runtime/memory/pools_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TYPED_TEST_SUITE_P(Loopback, PoolsContract, LoopbackPlaces, PlaceNames);
INSTANTIATE_TYPED_TEST_SUITE_P(Loopback, PageTransferContract, LoopbackPlaces, PlaceNames);

}  // namespace kvmesh::test
