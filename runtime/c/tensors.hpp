// From the C interface's tensors and numbers to the C++ types.
#pragma once

#include "kvmesh/c/kvmesh.h"
#include "kvmesh/combine.hpp"
#include "kvmesh/expr.hpp"
#include "kvmesh/partial.hpp"
#include "kvmesh/tensor.hpp"

namespace kvmesh::c {

/// A device by DLPack's numbers. @throws InvalidArgument, naming `what`.
Device device_of(std::int32_t type, std::int32_t id, const char* what);
/// @throws InvalidArgument, naming `what`: NULL, another type or device, more than four extents.
TensorView view(const kvmesh_tensor_t* tensor, const char* what);
/// NULL is an empty view. @throws InvalidArgument also if a tensor with elements has no data.
TensorView view_or_empty(const kvmesh_tensor_t* tensor, const char* what);
Partial partial(const kvmesh_tensor_t* o, const kvmesh_tensor_t* lse);

/// A copy of a contiguous one-dimensional tensor of float32, int32 or bool in host memory.
ModBuffer copy_of(const kvmesh_tensor_t* tensor);

/// One of KVMESH_DTYPE_..., but for the default. @throws InvalidArgument.
Dtype dtype_of(std::int32_t number);
Scatter scatter_of(std::int32_t number);
CombineStrategy strategy_of(std::int32_t number);

}  // namespace kvmesh::c
