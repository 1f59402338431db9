// The peer combine and gather of ranks that are threads of one process.
#include "tests/gpu/peer_gather_contract.hpp"

namespace kvmesh::test {

using PeerThreads = testing::Types<LoopbackRanks<1>, LoopbackRanks<2>, LoopbackRanks<4>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Threads, PeerContract, PeerThreads, RankNames);
INSTANTIATE_TYPED_TEST_SUITE_P(Threads, PeerGatherContract, PeerThreads, RankNames);

}  // namespace kvmesh::test
