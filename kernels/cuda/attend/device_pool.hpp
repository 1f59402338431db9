// Half of a pool as the attention kernels read it.
#pragma once

#include "kernels/cuda/attend/common/params.hpp"
#include "kvmesh/page_format.hpp"

namespace kvmesh::cuda {

/// Checks the strides of `pool` [pages, kv_heads, page_size, dim]: kernels find a page by a product
/// of 64 bits, and a key inside it by one of 32.
/// @throws InvalidArgument if the stride of a page, or the keys of one, reach over 4 GiB.
void check_device_pool(const ConstTensorView& pool);

/// REQUIRES: a pool that has passed `check_device_pool`.
DevicePool device_pool(const ConstTensorView& pool);

}  // namespace kvmesh::cuda
