#include "kvmesh/types.hpp"

#include <fmt/format.h>

#include "kvmesh/error.hpp"

namespace kvmesh {

Dtype dtype_from(std::string_view text) {
  for (Dtype dtype : kAllDtypes) {
    if (text == name(dtype)) return dtype;
  }
  throw InvalidArgument(fmt::format("unknown dtype '{}': float32, float16 or bfloat16", text));
}

}  // namespace kvmesh
