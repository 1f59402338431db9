// Scalar conversions between float32 and the narrower storage types, round to nearest even.
//
// The kernels convert whole vectors; these functions are for headers, edges and tests.
#pragma once

#include <bit>
#include <cstdint>
#include <cstdlib>

#include "core/pod/float8.hpp"
#include "kvmesh/types.hpp"

namespace kvmesh {

inline float bfloat16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

inline std::uint16_t float_to_bfloat16(float value) {
  std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  // A NaN keeps its sign and stays a NaN: rounding could carry it into infinity.
  if ((bits & 0x7FFF'FFFFu) > 0x7F80'0000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
  bits += 0x7FFFu + (bits >> 16 & 1u);
  return static_cast<std::uint16_t>(bits >> 16);
}

inline float float16_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t exponent = half >> 10 & 0x1Fu;
  const std::uint32_t mantissa = half & 0x3FFu;
  if (exponent == 0x1F) return std::bit_cast<float>(sign | 0x7F80'0000u | mantissa << 13);
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  // Subnormal: mantissa * 2^-24, exact in float32.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
}

inline std::uint16_t float_to_float16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint16_t sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7FFF'FFFFu;
  if (magnitude > 0x7F80'0000u) return sign | 0x7E00u;   // NaN
  if (magnitude >= 0x4780'0000u) return sign | 0x7C00u;  // >= 65536, infinity
  if (magnitude < 0x3880'0000u) {
    // Below 2^-14: adding 0.5 leaves the multiple of 2^-24, rounded to even, in the low bits.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return sign | static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(shifted) - 0x3F00'0000u);
  }
  const std::uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1u);
  return sign | static_cast<std::uint16_t>((rounded - 0x3800'0000u) >> 13);
}

/// How elements of a dtype are stored: `load` widens, `store` rounds.
struct Float32Element {
  using Stored = float;
  static float load(float value) { return value; }
  static float store(float value) { return value; }
};
struct Float16Element {
  using Stored = std::uint16_t;
  static float load(std::uint16_t bits) { return float16_to_float(bits); }
  static std::uint16_t store(float value) { return float_to_float16(value); }
};
struct BFloat16Element {
  using Stored = std::uint16_t;
  static float load(std::uint16_t bits) { return bfloat16_to_float(bits); }
  static std::uint16_t store(float value) { return float_to_bfloat16(value); }
};

struct Float8E4M3Element {
  using Stored = std::uint8_t;
  static float load(std::uint8_t bits) { return float8_to_float(bits); }
  static std::uint8_t store(float value) { return float_to_float8(value); }
};

/// Calls `body` with the element type of `dtype` and returns what it returns. Loops that depend on
/// a dtype go into `body`, so that compilers make vectors of them. REQUIRES: a valid dtype, as
/// check_tensor makes sure.
template <class Body>
decltype(auto) with_element(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::kFloat32:
      return body(Float32Element{});
    case Dtype::kFloat16:
      return body(Float16Element{});
    case Dtype::kBFloat16:
      return body(BFloat16Element{});
    case Dtype::kFloat8E4M3:
      return body(Float8E4M3Element{});
  }
  std::abort();
}

/// Element `index` of an array of `dtype`.
inline float load_element(const void* data, Dtype dtype, std::int64_t index) {
  return with_element(dtype, [&]<class Element>(Element) {
    return Element::load(static_cast<const typename Element::Stored*>(data)[index]);
  });
}

inline void store_element(void* data, Dtype dtype, std::int64_t index, float value) {
  with_element(dtype, [&]<class Element>(Element) {
    static_cast<typename Element::Stored*>(data)[index] = Element::store(value);
  });
}

}  // namespace kvmesh
