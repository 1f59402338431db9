// The contract of attention over an engine's own pages, over any communicator, on any device: every
// output is that of float64, in whatever order the memory is and whichever rank owns a token.
#pragma once

#include "tests/contracts/places.hpp"

namespace kvmesh::test {

/// The tests are in external_contract.cpp, compiled once for all programs that instantiate them.
class ExternalContract : public testing::TestWithParam<Place> {};

}  // namespace kvmesh::test
