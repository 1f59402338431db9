// Element types, and their properties in one table. One text for the host, nvcc and NVRTC, which
// has no headers but <cstdint>.
#pragma once

#include <cstdint>

namespace kvmesh {

/// Element types of keys, values, queries and outputs. Arithmetic is float32, but a GPU's tensor
/// cores take queries and softmax weights rounded to the type of 16-bit pages.
enum class Dtype : std::uint8_t { kFloat32, kFloat16, kBFloat16 };

inline constexpr Dtype kAllDtypes[] = {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16};

struct DtypeInfo {
  const char* name = "unknown";
  int bits = 0;  ///< of one element
};

/// A row for each type. No default: the compiler then names a type without a row.
constexpr DtypeInfo info_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return {"float32", 32};
    case Dtype::kFloat16:
      return {"float16", 16};
    case Dtype::kBFloat16:
      return {"bfloat16", 16};
  }
  return {};
}

}  // namespace kvmesh
