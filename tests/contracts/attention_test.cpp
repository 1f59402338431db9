#include "tests/contracts/attention_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TYPED_TEST_SUITE_P(Loopback, AttentionContract, LoopbackPlaces, PlaceNames);

}  // namespace kvmesh::test
