// The family of kernels for many rows on Hopper: 64 or 128 rows per thread block, pages of at least
// 8 tokens, of 16 bits or float8, head dims of 64 to 256, multiples of 32, for float8 of 64.
#pragma once

#include "kernels/cuda/attend/common/family.hpp"

namespace kvmesh::cuda {

const AttendFamily& prefill_family();

}  // namespace kvmesh::cuda
