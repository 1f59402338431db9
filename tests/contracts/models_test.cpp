#include "tests/contracts/models_contract.hpp"

namespace kvmesh::test {

using ModelPlaces = testing::Types<OnCpu<LoopbackRanks<2>>>;
INSTANTIATE_TEST_SUITE_P(Loopback, Models, each_place(ModelPlaces()), param_name);

}  // namespace kvmesh::test
