// Outputs of 16 bits, whose type is an argument of the kernel.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kvmesh/dtype.hpp"

namespace kvmesh::cuda {

/// `value` as float16 or bfloat16, rounded to nearest even.
__device__ inline std::uint16_t half_bits(float value, Dtype dtype) {
  return dtype == Dtype::kFloat16 ? __half_as_ushort(__float2half_rn(value))
                                  : __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

}  // namespace kvmesh::cuda
