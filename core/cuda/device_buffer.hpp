// Memory of a CUDA device. Only for sources that are built with CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <span>
#include <type_traits>

#include "core/cuda/check.hpp"
#include "core/owners/unique_handle.hpp"

namespace kvmesh::cuda {

/// Plain device memory on the device that was current when it was made. Moves, does not copy.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    void* data = nullptr;
    check(cudaMalloc(&data, bytes), "allocating device memory");
    data_.reset(data);
  }

  void* data() const { return data_.get(); }
  std::size_t size_bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_.get());
  }

 private:
  UniqueHandle<void*, cudaFree> data_;
  std::size_t bytes_ = 0;
};

/// Copies `values` to the device. Returns when the copy is complete.
template <class T>
DeviceBuffer upload(std::span<const T> values) {
  static_assert(std::is_trivially_copyable_v<T>);
  DeviceBuffer buffer(values.size_bytes());
  if (values.empty()) return buffer;
  check(cudaMemcpy(buffer.data(), values.data(), values.size_bytes(), cudaMemcpyHostToDevice),
        "copying to the device");
  // cudaMemcpy returns from a small copy once it has read the host's memory, before the bytes are
  // on the device.
  check(cudaStreamSynchronize(nullptr), "copying to the device");
  return buffer;
}

}  // namespace kvmesh::cuda
