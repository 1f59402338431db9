// The contract of layer groups over any communicator, on any device: windows that give up pages,
// formats and states of their own, and several kinds of layers in one plan. Every output is that of
// float64 and that of a single rank, while free pages are full of NaN.
#pragma once

#include "tests/contracts/places.hpp"

namespace kvmesh::test {

/// The tests are in layer_groups_contract.cpp, compiled once for all programs that instantiate
/// them. They take the shape of a place's small cache.
class LayerGroupsContract : public testing::TestWithParam<Place> {};

}  // namespace kvmesh::test
