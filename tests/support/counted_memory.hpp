// Counts how often a program takes memory.
#pragma once

#include <cstdint>

namespace kvmesh::test {

/// Calls of the operators new so far. A program that links counted_memory.cpp has these replaced.
std::int64_t allocations();

}  // namespace kvmesh::test
