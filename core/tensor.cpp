#include "kvmesh/tensor.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace kvmesh {

std::string describe(const ConstTensorView& view) {
  return fmt::format("{} [{}]", name(view.dtype),
                     fmt::join(view.shape.begin(), view.shape.begin() + view.dims, ", "));
}

std::string describe(Device device) {
  return device.kind == DeviceKind::kCpu ? "host memory"
                                         : fmt::format("memory of GPU {}", device.index);
}

}  // namespace kvmesh
