#include "tests/comm/communicator_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TYPED_TEST_SUITE_P(Loopback, CommunicatorContract, AllLoopbackRanks, RankNames);

}  // namespace kvmesh::test
