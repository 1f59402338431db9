#include "tests/contracts/attention_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Loopback, AttentionContract, each_of(LoopbackPlaces()), place_name);
INSTANTIATE_TEST_SUITE_P(LoopbackFormats, AttentionContract, each_of(LoopbackFormats()),
                         place_name);

}  // namespace kvmesh::test
