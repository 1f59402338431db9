// Arrays of a plan on the device.
#pragma once

#include <cstddef>
#include <type_traits>

#include "kernels/cuda/device_buffer.hpp"

namespace kvmesh::cuda {

/// Room for `capacity` elements on the device. Stays where it is until it grows.
template <class T>
class DeviceArray {
 public:
  static_assert(std::is_trivially_copyable_v<T>);

  T* data() const { return buffer_.as<T>(); }
  std::size_t capacity() const { return buffer_.size_bytes() / sizeof(T); }
  std::size_t size_bytes() const { return buffer_.size_bytes(); }
  /// What was in it is lost if it grows.
  void reserve(std::size_t count) {
    if (count > capacity()) buffer_ = DeviceBuffer(count * sizeof(T));
  }

 private:
  DeviceBuffer buffer_;
};

}  // namespace kvmesh::cuda
