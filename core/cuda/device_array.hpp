// Arrays on the device that grow. Only for sources that are built with CUDA.
#pragma once

#include <cstddef>
#include <type_traits>

#include "core/cuda/device_buffer.hpp"
#include "core/owners/growing_block.hpp"

namespace kvmesh::cuda {

/// Room for `capacity` elements on the device. The address stays the same until the array grows.
/// Earlier, smaller buffers are kept, because running kernels may still read them.
template <class T>
class DeviceArray {
 public:
  static_assert(std::is_trivially_copyable_v<T>);

  T* data() const { return static_cast<T*>(memory_.data()); }
  std::size_t capacity() const { return memory_.capacity_bytes() / sizeof(T); }
  /// Device bytes held, including the earlier buffers.
  std::size_t size_bytes() const { return memory_.size_bytes(); }
  /// Makes room for `count` elements. Returns true if the array moved; the contents are then lost.
  /// Allocates exactly `count` elements the first time, later at least twice the capacity.
  bool reserve(std::size_t count) {
    return memory_.reserve(count * sizeof(T),
                           [](std::size_t bytes) { return DeviceBuffer(bytes); });
  }

 private:
  GrowingBlock<DeviceBuffer> memory_;
};

}  // namespace kvmesh::cuda
