// Launches of kernels of this program that begin beside the end of the kernel before them. For
// sources that nvcc compiles.
#pragma once

#include <cuda_runtime.h>

namespace kvmesh {

/// Launches a kernel that waits by griddepcontrol_wait (core/cuda/device/dependent_launch.cuh).
/// Where the loaded code of the kernel has that instruction, it may begin before the kernel before
/// it on `stream` is done.
template <class Params>
cudaError_t launch_overlapping(void (*kernel)(Params), unsigned blocks, unsigned threads,
                               const Params& params, cudaStream_t stream) {
  cudaFuncAttributes code;
  if (const cudaError_t status = cudaFuncGetAttributes(&code, kernel); status != cudaSuccess) {
    return status;
  }
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = code.ptxVersion >= 90 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace kvmesh
