// The family of kernels that multiply by mma.sync: 16-bit pages, head dims up to 256, any page
// size.
#pragma once

#include "kernels/cuda/attend/common/family.hpp"

namespace kvmesh::cuda {

const AttendFamily& mma_family();

}  // namespace kvmesh::cuda
