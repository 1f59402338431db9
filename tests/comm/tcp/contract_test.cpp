// The contracts of communicators and of combine, over TCP.
#include "tests/comm/combine/combine_contract.hpp"
#include "tests/comm/communicator_contract.hpp"
#include "tests/comm/tcp/ranks.hpp"

namespace kvmesh::test {

using AllTcpRanks = testing::Types<TcpRanks<1>, TcpRanks<2>, TcpRanks<3>, TcpRanks<4>, TcpRanks<8>,
                                   TcpProcesses<3>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Tcp, CommunicatorContract, AllTcpRanks, RankNames);
using HostCases = OverEach<HostWays, AllTcpRanks>::Types;
INSTANTIATE_TYPED_TEST_SUITE_P(Tcp, CombineContract, HostCases, RankNames);

}  // namespace kvmesh::test
