// A step's data for the device, sent in one copy without a wait.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "core/cuda/check.hpp"
#include "core/cuda/device_array.hpp"
#include "core/owners/unique_handle.hpp"
#include "kernels/cuda/common/device_event.hpp"

namespace kvmesh::cuda {

/// Pinned host memory and its place on the device. Reused by each step: begin, add ..., send. The
/// pointers that `add` returned are valid on the stream until the next send.
class Upload {
 public:
  /// True if the device has taken the last data sent. That is so unless plans come faster than
  /// steps.
  bool is_taken() const;
  /// Makes room. Waits until it `is_taken`.
  void begin(std::size_t size_bytes);

  /// Returns the address that the values will have on the device.
  template <class T>
  const T* add(std::span<const T> values) {
    static_assert(std::is_trivially_copyable_v<T>);
    return static_cast<const T*>(add_bytes(values.data(), values.size_bytes()));
  }

  void send(cudaStream_t stream);

  std::size_t size_bytes() const { return device_.size_bytes(); }
  /// Bytes that `count` elements take here: they begin at multiples of 16 bytes.
  template <class T>
  static std::size_t bytes_of(std::size_t count) {
    return (count * sizeof(T) + 15) / 16 * 16;
  }

 private:
  const void* add_bytes(const void* values, std::size_t size_bytes);

  using HostBytes = UniqueHandle<std::byte*, cudaFreeHost>;

  HostBytes host_;                   // the same number of bytes as device_
  std::vector<HostBytes> outgrown_;  // not freed, for the reason that DeviceArray gives
  std::size_t used_ = 0;
  DeviceArray<std::byte> device_;
  DeviceEvent taken_;
  mutable bool is_known_taken_ = true;  // each query of the driver takes over a microsecond
};

}  // namespace kvmesh::cuda
