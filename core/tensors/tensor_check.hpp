// Checks of a tensor that every call makes before it reads the elements.
#pragma once

#include <string_view>

#include "core/check.hpp"
#include "kvmesh/tensor.hpp"

namespace kvmesh {

/// The element types that a tensor may have: those without scales, or any.
enum class Elements : std::uint8_t { kWithoutScales, kAny };

/// Checks that `view` has `dims` extents, none of them negative, one of the element types and a
/// valid kind of device. If it has elements, it must also have memory at a multiple of their size,
/// and strides that are not negative and stay within the address space.
/// @throws InvalidArgument, naming `what`.
void check_tensor(std::string_view what, const ConstTensorView& view, int dims,
                  Elements allowed = Elements::kWithoutScales);

/// Returns true if the last dimension has stride 1, or there are no elements: strides of such a
/// tensor mean nothing, and some libraries set them to 0. REQUIRES: a view that check_tensor
/// accepts.
inline bool has_contiguous_rows(const ConstTensorView& view) {
  return view.elements() == 0 || view.stride(view.dims - 1) == 1;
}

/// As check_tensor, for a tensor that is written: also checks that no two elements share memory.
void check_output_tensor(std::string_view what, const TensorView& view, int dims,
                         Elements allowed = Elements::kWithoutScales);

}  // namespace kvmesh
