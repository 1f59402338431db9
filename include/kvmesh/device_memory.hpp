// Memory of a device, for programs that have no CUDA in their own sources.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "kvmesh/tensor.hpp"

namespace kvmesh {

/// How many CUDA devices this process can use; 0 where the build has no CUDA backend.
int cuda_device_count();

/// Makes `device` the one that this thread's later calls use. @throws Unsupported if there is none
/// such.
void use_device(Device device);

/// Copies between any two of host and device memory. Returns when it is done. @throws
/// InvalidArgument if either is null.
void copy_bytes(void* to, const void* from, std::size_t size_bytes);

/// Owns `size_bytes` bytes on a device, not initialised, at an address that suits any element type.
/// Movable.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  /// @throws Unsupported without such a device, Error if it has not so much memory; InvalidArgument
  /// for a kind of device that is none.
  DeviceMemory(Device device, std::size_t size_bytes);

  void* data() const { return data_.get(); }
  std::size_t size_bytes() const { return size_bytes_; }

 private:
  std::unique_ptr<void, std::function<void(void*)>> data_;
  std::size_t size_bytes_ = 0;
};

}  // namespace kvmesh
