#include "tests/contracts/attention_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Processes, AttentionContract, each_place(MpiPlaces()), param_name);
INSTANTIATE_TEST_SUITE_P(ProcessFormats, AttentionContract, each_place(MpiFormats()), param_name);

}  // namespace kvmesh::test
