// The contract of every way to combine, over any communicator: the float64 result, the same bits by
// every strategy, no read of rows that take no part, no byte that the mask saves.
#pragma once

#include "tests/comm/combine/ways.hpp"

namespace kvmesh::test {

/// The tests are in combine_contract.cpp, compiled once for all programs that instantiate them.
class CombineContract : public testing::TestWithParam<WayOver> {};

}  // namespace kvmesh::test
