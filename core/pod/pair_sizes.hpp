// The largest size of 16-bit floating-point elements, two at a time by integer instructions. For
// the host and NVRTC: it needs <cstdint> alone.
#pragma once

#include <cstdint>

namespace kvmesh {

/// The sizes of a pair of elements, as two signed 16-bit numbers that have their order: the bits
/// without the sign, raised such that those of infinities and NaNs overflow and are negative. The
/// others are positive. `Infinity` has the bits of an infinity: 0x7C00 of float16, 0x7F80 of
/// bfloat16.
template <std::uint32_t Infinity>
struct PairSizes {
  static constexpr std::uint32_t kRaise = 0x8000u - Infinity;
  static constexpr std::uint32_t kOfZeros = kRaise * 0x10001u;

  static constexpr std::uint32_t of(std::uint32_t pair) { return (pair & 0x7FFF7FFFu) + kOfZeros; }

  /// Returns the bits of an element of the larger size, from two that are not negative.
  static constexpr std::uint32_t larger(std::uint32_t sizes) {
    const std::uint32_t low = sizes & 0xFFFFu, high = sizes >> 16;
    return (low > high ? low : high) - kRaise;
  }
};

}  // namespace kvmesh
