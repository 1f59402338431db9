// Arrays of a plan on the device, and the way that they get there without a wait.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <type_traits>

#include "core/cuda_check.hpp"
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

/// Host memory that the device copies from by itself. One plan's arrays go through it at a time.
class Staging {
 public:
  Staging();

  /// Makes room for `size_bytes`. Waits until the device has taken what was there before, which it
  /// did long ago unless plans come faster than steps.
  void begin(std::size_t size_bytes);

  /// Starts copying to `to`, which is made large enough.
  template <class T>
  void copy(std::span<const T> values, DeviceArray<T>& to, cudaStream_t stream) {
    to.reserve(values.size());
    copy_bytes(values.data(), values.size_bytes(), to.data(), stream);
  }

  /// After the last copy.
  void end(cudaStream_t stream);

  /// What an array takes here: copies begin at multiples of 16 bytes.
  static std::size_t padded(std::size_t size_bytes) { return (size_bytes + 15) / 16 * 16; }

 private:
  void copy_bytes(const void* from, std::size_t size_bytes, void* to, cudaStream_t stream);

  struct FreeHost {
    void operator()(std::byte* data) const { static_cast<void>(cudaFreeHost(data)); }
  };
  struct DestroyEvent {
    void operator()(cudaEvent_t event) const { static_cast<void>(cudaEventDestroy(event)); }
  };
  std::unique_ptr<std::byte, FreeHost> data_;
  std::size_t capacity_ = 0;
  std::size_t used_ = 0;
  std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, DestroyEvent> taken_;
};

}  // namespace kvmesh::cuda
