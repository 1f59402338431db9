#include "tests/contracts/sequences_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Processes, SequencesContract, each_of(MpiPlaces()), place_name);
INSTANTIATE_TEST_SUITE_P(ProcessFormats, SequencesContract, each_of(MpiFormats()), place_name);
INSTANTIATE_TEST_SUITE_P(ProcessGroups, SequencesContract, each_of(MpiGroups()), place_name);

}  // namespace kvmesh::test
