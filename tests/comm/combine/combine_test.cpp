#include "tests/comm/combine/combine_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Loopback, CombineContract, over_each<HostWays>(AllLoopbackRanks()),
                         param_name);
INSTANTIATE_TEST_SUITE_P(LoopbackStaged, CombineContract, over_each<StagedWays>(AllLoopbackRanks()),
                         param_name);
INSTANTIATE_TEST_SUITE_P(LoopbackPublic, CombineContract,
                         over_each<PublicCombiner>(AllLoopbackRanks()), param_name);

}  // namespace kvmesh::test
