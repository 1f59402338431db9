#include "tests/comm/communicator_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Loopback, CommunicatorContract, each_ranks(AllLoopbackRanks()),
                         param_name);

}  // namespace kvmesh::test
