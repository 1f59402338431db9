// Block masks made on the device.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/common/kernel_store.hpp"
#include "kvmesh/block_mask.hpp"

namespace kvmesh::cuda {

/// As BlockMask::create, tile for tile, on the device: it evaluates every pair of a query and a
/// key, and returns only the lists. Blocks. @throws InvalidArgument, CudaError.
BlockMask make_block_mask(KernelStore& kernels, const MaskMod& mask, const BlockMaskShape& shape);

}  // namespace kvmesh::cuda
