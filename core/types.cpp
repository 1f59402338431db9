#include "kvmesh/types.hpp"

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

}  // namespace kvmesh
