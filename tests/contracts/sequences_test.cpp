#include "tests/contracts/sequences_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Loopback, SequencesContract, each_of(LoopbackPlaces()), place_name);
INSTANTIATE_TEST_SUITE_P(LoopbackFormats, SequencesContract, each_of(LoopbackFormats()),
                         place_name);
INSTANTIATE_TEST_SUITE_P(LoopbackGroups, SequencesContract, each_of(LoopbackGroups()), place_name);

}  // namespace kvmesh::test
