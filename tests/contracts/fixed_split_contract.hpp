// The contract of PlanOptions::fixed_split_tokens over any communicator, on any device: a
// sequence's rows have the same bits alone and in every batch.
#pragma once

#include "tests/contracts/places.hpp"

namespace kvmesh::test {

/// The tests are in fixed_split_contract.cpp, compiled once for all programs that instantiate them.
/// They take the shapes of a place.
class FixedSplitContract : public testing::TestWithParam<Place> {};

}  // namespace kvmesh::test
