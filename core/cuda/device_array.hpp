// Arrays on the device that grow. Only for sources that are built with CUDA.
#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>
#include <vector>

#include "core/cuda/device_buffer.hpp"

namespace kvmesh::cuda {

/// Room for `capacity` elements on the device. The address stays the same until the array grows.
///
/// Earlier, smaller buffers are kept: cudaFree waits for all work on the device, and that work may
/// itself wait for a peer that has died.
template <class T>
class DeviceArray {
 public:
  static_assert(std::is_trivially_copyable_v<T>);

  T* data() const { return buffer_.as<T>(); }
  std::size_t capacity() const { return buffer_.size_bytes() / sizeof(T); }
  /// Device bytes held, including earlier buffers that running kernels may still read. The earlier
  /// buffers together are smaller than the current one.
  std::size_t size_bytes() const {
    std::size_t bytes = buffer_.size_bytes();
    for (const DeviceBuffer& buffer : outgrown_) bytes += buffer.size_bytes();
    return bytes;
  }
  /// Makes room for `count` elements. Returns true if the array moved; the contents are then lost.
  /// Allocates exactly `count` elements the first time, later at least twice the capacity.
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
