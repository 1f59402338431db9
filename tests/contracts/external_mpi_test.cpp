#include "tests/contracts/external_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TEST_SUITE_P(Processes, ExternalContract, each_place(MpiPlaces()), param_name);
using Formats = testing::Types<OnCpu<MpiRanks, LatentSizes>, OnCpu<MpiRanks, Float8Sizes>>;
INSTANTIATE_TEST_SUITE_P(Formats, ExternalContract, each_place(Formats()), param_name);

}  // namespace kvmesh::test
