// Device memory, for programs that have no CUDA in their own sources.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "kvmesh/api.h"
#include "kvmesh/tensor.hpp"

namespace KVMESH_API kvmesh {

/// The number of CUDA devices that this process can use; 0 in a build without CUDA.
int cuda_device_count();

/// Makes `device` the current device of the calling thread.
/// @throws Unsupported if the device does not exist.
void use_device(Device device);

/// Copies bytes between host and device memory, or within one of them. Returns when the copy is
/// complete.
/// @throws InvalidArgument if a pointer is null and `size_bytes` is not 0.
void copy_bytes(void* to, const void* from, std::size_t size_bytes);

/// Owns `size_bytes` uninitialised bytes on a device, at an address aligned for any element type.
/// Movable.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  /// @throws Unsupported if the device does not exist; Error if it has not enough memory;
  /// InvalidArgument if the kind of device is invalid.
  DeviceMemory(Device device, std::size_t size_bytes);

  void* data() const { return data_.get(); }
  std::size_t size_bytes() const { return size_bytes_; }

 private:
  std::unique_ptr<void, std::function<void(void*)>> data_;
  std::size_t size_bytes_ = 0;
};

}  // namespace kvmesh
