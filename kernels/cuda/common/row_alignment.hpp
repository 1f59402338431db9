// The alignment of a tensor's rows, on which the width of a kernel's accesses depends.
#pragma once

#include "kvmesh/tensor.hpp"

namespace kvmesh::cuda {

/// True if every row (of the last dimension) begins at a multiple of 16 bytes.
bool begins_at_16_bytes(const ConstTensorView& view);

}  // namespace kvmesh::cuda
