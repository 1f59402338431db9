// The contracts of communicators and of combine, over TCP.
#include "tests/comm/combine/combine_contract.hpp"
#include "tests/comm/communicator_contract.hpp"
#include "tests/comm/tcp/ranks.hpp"

namespace kvmesh::test {

using AllTcpRanks = testing::Types<TcpRanks<1>, TcpRanks<2>, TcpRanks<3>, TcpRanks<4>, TcpRanks<8>,
                                   TcpProcesses<3>>;
INSTANTIATE_TEST_SUITE_P(Tcp, CommunicatorContract, each_ranks(AllTcpRanks()), param_name);
INSTANTIATE_TEST_SUITE_P(Tcp, CombineContract, over_each<HostWays>(AllTcpRanks()), param_name);

}  // namespace kvmesh::test
