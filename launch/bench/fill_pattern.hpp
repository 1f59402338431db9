// Numbers to fill tensors with, the same on every device.
#pragma once

#include <cstdint>

#include "kvmesh/types.hpp"

namespace kvmesh::bench {

/// A 32-bit word of a tensor is `base | (hash & mask)`: one float32, two 16-bit or four 8-bit
/// numbers with a fixed exponent, so of magnitude [0.5, 1), and random sign and mantissa.
struct FillPattern {
  std::uint32_t base = 0;
  std::uint32_t mask = 0;
};

constexpr FillPattern fill_pattern(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat16:
      return {0x3800'3800, 0x83FF'83FF};
    case Dtype::kBFloat16:
      return {0x3F00'3F00, 0x807F'807F};
    case Dtype::kFloat8E4M3:
      return {0x3030'3030, 0x8787'8787};
    case Dtype::kFloat32:
      break;
  }
  return {0x3F00'0000, 0x807F'FFFF};
}

/// Pattern of the scales of float8 rows: float32 numbers in [0.5, 1).
inline constexpr FillPattern kScalePattern{0x3F00'0000, 0x007F'FFFF};

}  // namespace kvmesh::bench
