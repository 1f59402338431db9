// The arithmetic ceiling of the CPU.
#pragma once

#include <cstdint>

namespace kvmesh::bench {

/// Computes float32 multiply-adds from registers with the machine's widest vectors, on the calling
/// thread. Returns a number that depends on all of them.
float multiply_from_registers(std::int64_t steps);
/// Operations per step, two per multiply-add.
std::int64_t operations_of_step();

}  // namespace kvmesh::bench
