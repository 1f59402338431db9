// Block masks made on the device.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/common/kernel_store.hpp"
#include "kvmesh/block_mask.hpp"

namespace kvmesh::cuda {

/// As BlockMask::create, tile for tile, by the device: every pair of a query and a key is evaluated
/// there, and only the lists come back. Waits for it. @throws InvalidArgument, CudaError.
BlockMask make_block_mask(KernelStore& kernels, const MaskMod& mask, const BlockMaskShape& shape);

}  // namespace kvmesh::cuda
