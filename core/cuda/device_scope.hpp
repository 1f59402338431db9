// The current device of the CUDA runtime, for a scope. Only for sources that are built with CUDA.
#pragma once

#include "core/cuda/check.hpp"

namespace kvmesh {

/// Makes a device current, and the one before at its end. @throws CudaError.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    check(cudaGetDevice(&before_), "asking for the current device");
    if (before_ == device) return;
    check(cudaSetDevice(device), "making a device current");
    changed_ = true;
  }
  ~DeviceScope() {
    if (changed_) static_cast<void>(cudaSetDevice(before_));
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace kvmesh
