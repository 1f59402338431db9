// Device memory that grows and is kept. Only for sources that are built with CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/cuda_check.hpp"

namespace kvmesh {

/// Memory of the device that is current when it grows; what it held is lost then.
class GrowingDeviceBuffer {
 public:
  /// True if the memory is another one now. The old is freed when the device has done with it.
  bool reserve(std::size_t bytes) {
    if (bytes <= bytes_) return false;
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "allocating device memory");
    memory_.reset(memory);
    bytes_ = bytes;
    return true;
  }
  bool reserve_floats(std::int64_t floats) {
    return reserve(static_cast<std::size_t>(floats) * sizeof(float));
  }

  void* data() const { return memory_.get(); }
  float* floats() const { return static_cast<float*>(memory_.get()); }
  std::size_t size_bytes() const { return bytes_; }

 private:
  struct Free {
    // cudaFree waits for the device. A failure cannot be answered: the process may have left CUDA.
    void operator()(void* memory) const { static_cast<void>(cudaFree(memory)); }
  };
  std::unique_ptr<void, Free> memory_;
  std::size_t bytes_ = 0;
};

}  // namespace kvmesh
