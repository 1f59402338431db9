// Launches that begin beside the end of the kernel before them (Hopper and later), for nvcc and
// NVRTC.
#pragma once

namespace kvmesh::cuda {

/// Until the kernel before this one on its stream is done, and what it wrote is there; at once
/// where this kernel was launched to begin after it.
__device__ inline void griddepcontrol_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the next kernel of the stream start, if it was launched so that it may.
__device__ inline void griddepcontrol_launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace kvmesh::cuda
