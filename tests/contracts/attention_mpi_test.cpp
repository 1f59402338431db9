#include "tests/contracts/attention_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Processes, AttentionContract, each_of(MpiPlaces()), place_name);
INSTANTIATE_TEST_SUITE_P(ProcessFormats, AttentionContract, each_of(MpiFormats()), place_name);

}  // namespace kvmesh::test
