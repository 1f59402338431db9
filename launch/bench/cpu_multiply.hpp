// The arithmetic ceiling of the CPU.
#pragma once

#include <cstdint>

namespace kvmesh::bench {

/// Float32 multiply-adds from registers with the machine's widest vectors, by the calling thread.
/// Returns a number that depends on all of them.
float multiply_from_registers(std::int64_t steps);
/// Operations (two per multiply-add) of one step.
std::int64_t operations_of_step();

}  // namespace kvmesh::bench
