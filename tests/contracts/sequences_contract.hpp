// The contract of KvCache over any communicator, on any device: the life of sequences. Whatever the
// ranks and the placement are, every output is that of float64 and that of a single rank.
#pragma once

#include "tests/contracts/places.hpp"

namespace kvmesh::test {

/// The tests are in sequences_contract.cpp, compiled once for all programs that instantiate them.
class SequencesContract : public testing::TestWithParam<Place> {};

}  // namespace kvmesh::test
