#include "tests/contracts/sequences_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Loopback, SequencesContract, each_place(LoopbackPlaces()), param_name);
INSTANTIATE_TEST_SUITE_P(LoopbackFormats, SequencesContract, each_place(LoopbackFormats()),
                         param_name);
INSTANTIATE_TEST_SUITE_P(LoopbackGroups, SequencesContract, each_place(LoopbackGroups()),
                         param_name);

}  // namespace kvmesh::test
