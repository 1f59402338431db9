// What attention over an engine's own pages must do over any communicator, on any device: whatever
// the order of the memory and the ownership of tokens, every output is that of float64.
#pragma once

#include "tests/contracts/places.hpp"

namespace kvmesh::test {

/// The tests are in external_contract.cpp, compiled once for all programs that instantiate them.
class ExternalContract : public testing::TestWithParam<Place> {};

}  // namespace kvmesh::test
