// What every call asks of a tensor before it looks at the numbers.
#pragma once

#include <string_view>

#include "core/check.hpp"
#include "kvmesh/tensor.hpp"

namespace kvmesh {

/// @throws InvalidArgument, naming `what`, unless `view` has `dims` extents, none negative, an
/// element type and a kind of device that exist, and, if it has elements, memory at a multiple of
/// their size and strides that are not negative and reach no further than an address can.
void check_tensor(std::string_view what, const ConstTensorView& view, int dims);

/// The same of a tensor that is written: no two of its elements may be one.
void check_output_tensor(std::string_view what, const TensorView& view, int dims);

}  // namespace kvmesh
