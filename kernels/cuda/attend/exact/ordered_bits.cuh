// Numbers as integers of the same order, which integer maxima take.
#pragma once

#include <cstdint>

namespace kvmesh::cuda {

/// As integers these are in the order of the numbers, with every NaN above all.
__device__ inline std::int32_t ordered_bits(float value) {
  const std::int32_t bits = __float_as_int(value);
  if (value != value) return 0x7FFF'FFFF;
  return bits >= 0 ? bits : bits ^ 0x7FFF'FFFF;
}
__device__ inline float from_ordered_bits(std::int32_t ordered) {
  return __int_as_float(ordered >= 0 ? ordered : ordered ^ 0x7FFF'FFFF);
}

}  // namespace kvmesh::cuda
