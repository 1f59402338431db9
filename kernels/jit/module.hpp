// Machine code on the device: loading it, and launching its kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <type_traits>

namespace kvmesh::jit {

/// Where and how large a launch is.
struct Launch {
  cudaStream_t stream = nullptr;  ///< the kernel runs after what is already on it
  dim3 grid{1, 1, 1};
  dim3 block{1, 1, 1};
  std::size_t shared_bytes = 0;  ///< dynamic; past 48 KB: allow_shared_bytes first
  /// The kernel may start while the one before it on the stream still runs, and itself waits
  /// (griddepcontrol.wait) before it reads what that one writes.
  bool overlaps_previous = false;
};

/// A kernel of a module, valid while that module is. Cheap to copy. Works on every device.
class Kernel {
 public:
  Kernel() = default;
  Kernel(cudaKernel_t handle, std::string name) : handle_(handle), name_(std::move(name)) {}

  const std::string& name() const { return name_; }

  /// Lets launches on `device` take up to so much dynamic shared memory. @throws CudaError if the
  /// device has less.
  void allow_shared_bytes(std::size_t bytes, int device) const;

  /// How many blocks fit on one multiprocessor of the current device at once.
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

/// Loaded machine code. Not bound to a device: the runtime takes it to each one where a kernel of
/// it is launched first.
class Module {
 public:
  /// @throws CudaError, also where there is no device.
  explicit Module(std::span<const std::byte> cubin);

  /// A kernel declared extern "C". @throws CudaError that names it if there is none.
  Kernel kernel(const std::string& name) const;

 private:
  struct Unload {
    void operator()(cudaLibrary_t library) const;
  };
  std::unique_ptr<std::remove_pointer_t<cudaLibrary_t>, Unload> library_;
};

/// The architecture to compile for, so that all that the device can do is allowed: "sm_90a" for
/// compute capability 9.0, "sm_80" for 8.0. @throws CudaError
std::string architecture_of(int device);

}  // namespace kvmesh::jit
