#include "tests/contracts/attention_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TYPED_TEST_SUITE_P(Loopback, AttentionContract, LoopbackPlaces, PlaceNames);
INSTANTIATE_TYPED_TEST_SUITE_P(LoopbackFormats, AttentionContract, LoopbackFormats, PlaceNames);

}  // namespace kvmesh::test
