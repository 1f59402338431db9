// The families of kernels for many rows on Hopper: 64 or 128 rows per thread block. The copy engine
// brings pages of at least 8 tokens, of 16 bits or float8, with head dims of 64 to 256, multiples
// of 32, for float8 of 64. Warps gather all other 16-bit pages, with multiples of 64.
#pragma once

#include "kernels/cuda/attend/common/family.hpp"

namespace kvmesh::cuda {

const AttendFamily& prefill_family();
const AttendFamily& prefill_gather_family();

}  // namespace kvmesh::cuda
