#include "tests/contracts/sequences_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TYPED_TEST_SUITE_P(Loopback, SequencesContract, LoopbackPlaces, PlaceNames);
INSTANTIATE_TYPED_TEST_SUITE_P(LoopbackFormats, SequencesContract, LoopbackFormats, PlaceNames);
INSTANTIATE_TYPED_TEST_SUITE_P(LoopbackGroups, SequencesContract, LoopbackGroups, PlaceNames);

}  // namespace kvmesh::test
