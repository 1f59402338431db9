// The launch of the kernel that converts LSEs in base two.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace kvmesh::cuda {

/// On the current device: before the first launch, so that it does not have to.
cudaError_t load_natural_kernel();

/// Makes an LSE [tokens, heads] in base two natural, in place. Asynchronous on `stream`; returns
/// what the launch returned. REQUIRES: contiguous heads; the stride of a token is in elements.
cudaError_t launch_make_natural(float* lse, std::int64_t token_stride, std::int64_t tokens,
                                int heads, cudaStream_t stream);

}  // namespace kvmesh::cuda
