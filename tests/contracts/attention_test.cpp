#include "tests/contracts/attention_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Loopback, AttentionContract, each_place(LoopbackPlaces()), param_name);
INSTANTIATE_TEST_SUITE_P(LoopbackFormats, AttentionContract, each_place(LoopbackFormats()),
                         param_name);

}  // namespace kvmesh::test
