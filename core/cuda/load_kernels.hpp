// Kernels of this program, on the device before they are needed. For sources that nvcc compiles.
#pragma once

#include <cuda_runtime.h>

namespace kvmesh {

/// Loads kernels on the current device. Without it the first launch does, for which CUDA may wait
/// until the device has done all that it was given (CUDA C++ Programming Guide, "Lazy Loading"):
/// for ever, if that waits for a peer that has died.
template <class... Kernels>
cudaError_t load_kernels(Kernels*... kernels) {
  cudaError_t status = cudaSuccess;
  const auto load = [&](auto* kernel) {
    cudaFuncAttributes unused;
    if (status == cudaSuccess) status = cudaFuncGetAttributes(&unused, kernel);
  };
  (load(kernels), ...);
  return status;
}

}  // namespace kvmesh
