#include "tests/contracts/attention_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TYPED_TEST_SUITE_P(Processes, AttentionContract, MpiPlaces, PlaceNames);
INSTANTIATE_TYPED_TEST_SUITE_P(ProcessFormats, AttentionContract, MpiFormats, PlaceNames);

}  // namespace kvmesh::test
