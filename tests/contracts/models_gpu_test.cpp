#include "tests/contracts/models_contract.hpp"

namespace kvmesh::test {

using ModelPlaces = testing::Types<OnCuda<MpiRanks, BFloat16Sizes>>;
INSTANTIATE_TEST_SUITE_P(Gpus, Models, each_place(ModelPlaces()), param_name);

}  // namespace kvmesh::test
