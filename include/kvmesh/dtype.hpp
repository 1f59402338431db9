// Element types and a table of their properties. One text for the host, nvcc and NVRTC, which has
// no standard headers except <cstdint>.
#pragma once

#include <cstdint>

namespace kvmesh {

/// Element types of keys, values, queries and outputs. Arithmetic is in float32. But a GPU's tensor
/// cores read queries and softmax weights rounded to the element type of 16-bit pages.
enum class Dtype : std::uint8_t { kFloat32, kFloat16, kBFloat16, kFloat8E4M3 };

inline constexpr Dtype kAllDtypes[] = {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16,
                                       Dtype::kFloat8E4M3};

struct DtypeInfo {
  const char* name = "unknown";
  int bits = 0;  ///< per element
  /// Elements need scales, so that only pages can have the type: no query, new key or output.
  bool has_scales = false;
};

/// One row per type. There is no default case, so that the compiler reports a type without a row.
constexpr DtypeInfo info_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return {"float32", 32};
    case Dtype::kFloat16:
      return {"float16", 16};
    case Dtype::kBFloat16:
      return {"bfloat16", 16};
    case Dtype::kFloat8E4M3:
      return {"float8_e4m3", 8, true};
  }
  return {};
}

}  // namespace kvmesh
