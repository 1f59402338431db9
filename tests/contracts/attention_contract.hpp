// The contract of KvCache over any communicator, on any device: attention in all the forms that a
// plan takes. Whatever the ranks and the placement are, every output is that of float64 and that of
// a single rank.
#pragma once

#include "tests/contracts/places.hpp"

namespace kvmesh::test {

/// The tests are in attention_contract.cpp, compiled once for all programs that instantiate them.
class AttentionContract : public testing::TestWithParam<Place> {};

}  // namespace kvmesh::test
