// Descriptions of tensors for the copy engine, made on the host by the driver.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/cuda/attend/hopper/instructions/tensor_map.hpp"
#include "kvmesh/types.hpp"

namespace kvmesh::cuda {

/// Five dimensions, the innermost first, in elements. The innermost stride is 1; the others are
/// multiples of 16 bytes.
struct TensorBoxes {
  std::array<std::int64_t, 5> extents;
  std::array<std::int64_t, 5> strides;
  std::array<std::int64_t, 5> box;  ///< what one copy takes, 256 per dimension at the most
};

/// Boxes arrive swizzled as image.hpp says, by the bytes of the innermost box: 128, or 64 of
/// float8. The data, of a 16-bit type or float8, begins at a multiple of 16 bytes.
/// @throws Error if the driver cannot make it.
TensorMap make_tensor_map(Dtype dtype, const void* data, const TensorBoxes& boxes);

}  // namespace kvmesh::cuda
