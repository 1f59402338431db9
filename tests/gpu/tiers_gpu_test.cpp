// Tiers of caches on GPUs, which ranks may share.
#include "tests/runtime/tiers/tiers_contract.hpp"

namespace kvmesh::test {

using GpuTierPlaces = testing::Types<OnCuda<MpiRanks, Float32Sizes>, OnCuda<MpiRanks, LatentSizes>,
                                     OnCuda<MpiRanks, Float8Sizes>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Gpus, TiersContract, GpuTierPlaces, PlaceNames);

}  // namespace kvmesh::test
