#include "kvmesh/types.hpp"

#include <fmt/format.h>

#include "kvmesh/error.hpp"

namespace kvmesh {

std::string_view name(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return "float32";
    case Dtype::kFloat16:
      return "float16";
    case Dtype::kBFloat16:
      return "bfloat16";
  }
  return "unknown";
}

Dtype dtype_from(std::string_view text) {
  for (Dtype dtype : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16}) {
    if (text == name(dtype)) return dtype;
  }
  throw InvalidArgument(fmt::format("unknown dtype '{}': float32, float16 or bfloat16", text));
}

}  // namespace kvmesh
