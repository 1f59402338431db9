// Outputs of 16 bits, whose type is an argument of the kernel.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kvmesh/dtype.hpp"

namespace kvmesh::cuda {

// Float8 has scales, so no output has it. A new type needs a case here and in the callers, which
// take every type but float32 for one of 16 bits.
static_assert(sizeof kAllDtypes == 4 * sizeof(Dtype), "an output of a new type");

/// `value` as float16 or bfloat16, rounded to nearest even.
__device__ inline std::uint16_t half_bits(float value, Dtype dtype) {
  return dtype == Dtype::kFloat16 ? __half_as_ushort(__float2half_rn(value))
                                  : __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

}  // namespace kvmesh::cuda
