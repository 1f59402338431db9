#include "kvmesh/tensor.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace kvmesh {

std::string describe(const ConstTensorView& view) {
  return fmt::format("{} [{}]", name(view.dtype),
                     fmt::join(view.shape.begin(), view.shape.begin() + view.dims, ", "));
}

}  // namespace kvmesh
