// The arithmetic of float8 e4m3 elements, for the host, nvcc and NVRTC: it needs <cstdint> alone.
//
//   bit 7     6        3  2        0
//      [ sign | exponent | mantissa ]   bias 7, subnormals below 2^-6, no infinity;
//                                       all of exponent and mantissa set: NaN
#pragma once

#include <cstdint>

namespace kvmesh {

/// The largest element.
inline constexpr float kFloat8Max = 448.0f;

constexpr float float8_to_float(std::uint8_t bits) {
  constexpr std::uint32_t kNan = 0x7FC0'0000;
  const std::uint32_t magnitude = bits & 0x7Fu;
  // In the place of a float32's bits the exponent is 120 too small, also that of subnormals.
  const float size = magnitude == 0x7F ? __builtin_bit_cast(float, kNan)
                                       : __builtin_bit_cast(float, magnitude << 20) * 0x1p120f;
  return (bits & 0x80u) != 0 ? -size : size;
}

/// The nearest element, ties to even; numbers beyond the largest become the largest, a NaN stays a
/// NaN.
constexpr std::uint8_t float_to_float8(float value) {
  const auto bits = __builtin_bit_cast(std::uint32_t, value);
  const std::uint32_t sign = bits >> 24 & 0x80u;
  const std::uint32_t magnitude = bits & 0x7FFF'FFFFu;
  if (magnitude > 0x7F80'0000u) return static_cast<std::uint8_t>(sign | 0x7Fu);
  std::uint32_t element = 0x7E;
  if (magnitude < 0x3A80'0000u) {  // below 2^-10, half of the smallest element
    element = 0;
  } else if (magnitude < 0x3C80'0000u) {  // below 2^-6: a multiple of 2^-9
    const std::uint32_t significand = (magnitude & 0x7F'FFFFu) | 0x80'0000u;
    const std::uint32_t shift = 141 - (magnitude >> 23);  // 2^-9 is bit 23 of 2^(exponent - 127)
    element = (significand + (1u << (shift - 1)) - 1 + (significand >> shift & 1u)) >> shift;
  } else if (magnitude < 0x43E0'0000u) {  // below 448
    element = (magnitude + 0x7'FFFFu + (magnitude >> 20 & 1u) - (120u << 23)) >> 20;
  }
  return static_cast<std::uint8_t>(sign | element);
}

/// The factor for elements of which the largest finite magnitude is `largest`: it becomes
/// kFloat8Max. At least the smallest normal float32, so that zeros have one, too.
constexpr float float8_scale(float largest) {
  constexpr float kLeast = 0x1p-126f;
  const float scale = largest / kFloat8Max;
  return scale < kLeast ? kLeast : scale;
}

/// Does `size` count for float8_scale? Infinities do not, they become the largest element.
constexpr bool is_finite_size(float size) { return size <= 3.402823466e+38f; }

}  // namespace kvmesh
