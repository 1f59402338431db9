#include "kvmesh/tensor.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>

#include "core/checked.hpp"
#include "core/tensors/tensor_check.hpp"

namespace kvmesh {
namespace {

// No current processor addresses more memory in a program (x86-64 with five levels: 2^56).
constexpr std::int64_t kMostBytes = std::int64_t{1} << 56;

// Bytes from the first element to the end of the last.
std::int64_t reach_bytes(std::string_view what, const ConstTensorView& view) {
  std::int64_t elements = 1;
  for (int i = 0; i < view.dims; ++i) {
    if (view.size(i) == 1) continue;
    require(view.stride(i) >= 0, "{}: {} has the stride {}", what, view, view.stride(i));
    elements =
        checked_sum(what, {elements, checked_product(what, {view.size(i) - 1, view.stride(i)})});
  }
  return checked_product(what, {elements, static_cast<std::int64_t>(size_bytes(view.dtype))});
}

}  // namespace

void throw_wrong_extents(std::size_t extents, std::size_t strides, int most) {
  throw InvalidArgument(fmt::format("a tensor of {} extents and {} strides: up to {} of each",
                                    extents, strides, most));
}

void throw_not_16_bits(Dtype dtype) {
  throw InvalidArgument(fmt::format("a tensor of 16-bit elements cannot be {}", name(dtype)));
}

std::string describe(const ConstTensorView& view) {
  const int shown = std::clamp(view.dims, 0, ConstTensorView::kMaxDims);
  return fmt::format("{} [{}{}]", name(view.dtype),
                     fmt::join(view.shape.begin(), view.shape.begin() + shown, ", "),
                     shown == view.dims ? "" : fmt::format("; {} dimensions", view.dims));
}

std::string describe(Device device) {
  return device.kind == DeviceKind::kCpu ? "host memory"
                                         : fmt::format("memory of GPU {}", device.index);
}

void check_tensor(std::string_view what, const ConstTensorView& view, int dims, Elements allowed) {
  require(view.dims == dims, "{}: {} has not {} dimensions", what, view, dims);
  require(is_valid(view.dtype), "{}: element type {} is not valid", what,
          static_cast<int>(view.dtype));
  require(allowed == Elements::kAny || !info_of(view.dtype).has_scales,
          "{}: only pages can be {}, whose elements need scales", what, name(view.dtype));
  require(view.device.kind <= DeviceKind::kCuda, "{}: device kind {} is not valid", what,
          static_cast<int>(view.device.kind));
  const auto end = view.shape.begin() + dims;
  require(std::all_of(view.shape.begin(), end, [](std::int64_t n) { return n >= 0; }),
          "{}: {} has a negative extent", what, view);
  if (std::find(view.shape.begin(), end, 0) != end) return;
  std::int64_t elements = 1;
  for (int i = 0; i < dims; ++i) elements = checked_product(what, {elements, view.size(i)});
  require(view.data != nullptr, "{}: {} has no data", what, view);
  require(reach_bytes(what, view) <= kMostBytes, "{}: the strides of {} reach past any memory",
          what, view);
  require(reinterpret_cast<std::uintptr_t>(view.data) % size_bytes(view.dtype) == 0,
          "{}: {} begins at an address that is no multiple of {}", what, view,
          size_bytes(view.dtype));
}

void check_output_tensor(std::string_view what, const TensorView& view, int dims,
                         Elements allowed) {
  check_tensor(what, view, dims, allowed);
  if (view.elements() == 0) return;
  for (int i = 0; i < dims; ++i) {
    require(view.size(i) <= 1 || view.stride(i) != 0, "{}: the elements of {} are one another",
            what, view);
  }
}

}  // namespace kvmesh
