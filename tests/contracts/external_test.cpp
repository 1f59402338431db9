#include "tests/contracts/external_contract.hpp"

namespace kvmesh::test {

using ExternalPlaces =
    testing::Types<OnCpu<LoopbackRanks<1>>, OnCpu<LoopbackRanks<2>>, OnCpu<LoopbackRanks<4>>,
                   OnCpu<LoopbackRanks<3>, LatentSizes>, OnCpu<LoopbackRanks<2>, Float8Sizes>>;
INSTANTIATE_TEST_SUITE_P(Loopback, ExternalContract, each_place(ExternalPlaces()), param_name);

}  // namespace kvmesh::test
