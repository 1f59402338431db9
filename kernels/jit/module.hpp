// Loads machine code on the device and launches its kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <span>
#include <string>
#include <type_traits>

#include "core/owners/unique_handle.hpp"

namespace kvmesh::jit {

/// The stream, the size and the options of a launch.
struct Launch {
  cudaStream_t stream = nullptr;  ///< the kernel runs after the work on it
  dim3 grid{1, 1, 1};
  dim3 block{1, 1, 1};
  std::size_t shared_bytes = 0;  ///< dynamic; past 48 KB: allow_shared_bytes first
  /// The kernel may start while the one before it on the stream still runs. It waits
  /// (griddepcontrol.wait) before it reads that kernel's output.
  bool overlaps_previous = false;
};

/// A kernel of a module, valid while the module is. Cheap to copy. Works on every device.
class Kernel {
 public:
  Kernel() = default;
  Kernel(cudaKernel_t handle, std::string name) : handle_(handle), name_(std::move(name)) {}

  const std::string& name() const { return name_; }

  /// Lets launches on `device` take up to this much dynamic shared memory. @throws CudaError if the
  /// device has less.
  void allow_shared_bytes(std::size_t bytes, int device) const;

  /// Returns the number of blocks that fit on one multiprocessor of the current device at once.
  int blocks_per_multiprocessor(int block_threads, std::size_t shared_bytes) const;

  /// Starts the kernel, whose one parameter is a struct of this type, on the current device.
  /// Asynchronous; may be captured in a graph. @throws CudaError
  template <class Params>
  void launch(const Launch& how, const Params& params) const {
    static_assert(std::is_trivially_copyable_v<Params>, "the device gets the struct's bytes");
    launch_bytes(how, &params);
  }

 private:
  void launch_bytes(const Launch& how, const void* params) const;

  cudaKernel_t handle_ = nullptr;
  std::string name_;
};

/// Loaded machine code. Not bound to a device: the runtime loads it on each device where one of its
/// kernels is launched first.
class Module {
 public:
  /// @throws CudaError, also where there is no device.
  explicit Module(std::span<const std::byte> cubin);

  /// Returns a kernel declared extern "C". @throws CudaError that names it if there is none.
  Kernel kernel(const std::string& name) const;

 private:
  UniqueHandle<cudaLibrary_t, cudaLibraryUnload> library_;
};

/// Returns the architecture that allows all features of the device: "sm_90a" for compute capability
/// 9.0, "sm_80" for 8.0. @throws CudaError
std::string architecture_of(int device);
/// Returns whether chips of the architecture have launches that overlap the one before (Hopper and
/// later).
bool can_overlap_launches(const std::string& architecture);

}  // namespace kvmesh::jit
