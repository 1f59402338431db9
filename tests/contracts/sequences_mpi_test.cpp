#include "tests/contracts/sequences_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Processes, SequencesContract, each_place(MpiPlaces()), param_name);
INSTANTIATE_TEST_SUITE_P(ProcessFormats, SequencesContract, each_place(MpiFormats()), param_name);
INSTANTIATE_TEST_SUITE_P(ProcessGroups, SequencesContract, each_place(MpiGroups()), param_name);

}  // namespace kvmesh::test
