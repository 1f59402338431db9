// Loads kernels of this program onto the device before their first launch. For sources that nvcc
// compiles.
#pragma once

#include <cuda_runtime.h>

namespace kvmesh {

/// Loads kernels on the current device. Otherwise CUDA loads a kernel at its first launch, and may
/// wait for all earlier work on the device (CUDA C++ Programming Guide, "Lazy Loading"):
/// without end if that work waits for a peer that has died.
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
