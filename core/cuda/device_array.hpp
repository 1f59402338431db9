// Arrays on the device that grow. Only for sources that are built with CUDA.
#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>
#include <vector>

#include "core/cuda/device_buffer.hpp"

namespace kvmesh::cuda {

/// Room for `capacity` elements on the device, which stays where it is until it grows.
///
/// What it has outgrown it keeps: to free memory is to wait for all that the device was given,
/// which may itself wait for a peer that has died.
template <class T>
class DeviceArray {
 public:
  static_assert(std::is_trivially_copyable_v<T>);

  T* data() const { return buffer_.as<T>(); }
  std::size_t capacity() const { return buffer_.size_bytes() / sizeof(T); }
  /// With what was outgrown, which is less than what there is.
  std::size_t size_bytes() const {
    std::size_t bytes = buffer_.size_bytes();
    for (const DeviceBuffer& buffer : outgrown_) bytes += buffer.size_bytes();
    return bytes;
  }
  /// True if the elements are elsewhere now, and what they were is not there. Takes `count` the
  /// first time, later at least twice of what there was.
  bool reserve(std::size_t count) {
    if (count <= capacity()) return false;
    DeviceBuffer larger(std::max(count, 2 * capacity()) * sizeof(T));
    if (buffer_.size_bytes() > 0) outgrown_.push_back(std::move(buffer_));
    buffer_ = std::move(larger);
    return true;
  }

 private:
  DeviceBuffer buffer_;
  std::vector<DeviceBuffer> outgrown_;
};

}  // namespace kvmesh::cuda
