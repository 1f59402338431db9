#include "tests/comm/combine/combine_contract.hpp"

namespace kvmesh::test {

using HostCases = OverEach<HostWays, AllLoopbackRanks>::Types;
using StagedCases = OverEach<StagedWays, AllLoopbackRanks>::Types;
using PublicCases = OverEach<PublicCombiner, AllLoopbackRanks>::Types;
INSTANTIATE_TYPED_TEST_SUITE_P(Loopback, CombineContract, HostCases, RankNames);
INSTANTIATE_TYPED_TEST_SUITE_P(LoopbackStaged, CombineContract, StagedCases, RankNames);
INSTANTIATE_TYPED_TEST_SUITE_P(LoopbackPublic, CombineContract, PublicCases, RankNames);

}  // namespace kvmesh::test
