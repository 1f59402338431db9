#include "tests/comm/combine/combine_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TYPED_TEST_SUITE_P(Loopback, CombineContract, AllLoopbackRanks, RankNames);

}  // namespace kvmesh::test
