#include "tests/contracts/sequences_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TYPED_TEST_SUITE_P(Processes, SequencesContract, MpiPlaces, PlaceNames);
INSTANTIATE_TYPED_TEST_SUITE_P(ProcessFormats, SequencesContract, MpiFormats, PlaceNames);
INSTANTIATE_TYPED_TEST_SUITE_P(ProcessGroups, SequencesContract, MpiGroups, PlaceNames);

}  // namespace kvmesh::test
