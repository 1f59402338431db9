// A point in the order of a stream's work.
#pragma once

#include <cuda_runtime_api.h>

#include "core/cuda/check.hpp"
#include "core/owners/unique_handle.hpp"

namespace kvmesh::cuda {

/// An event without timing. A wait for it returns at once until it is recorded.
class DeviceEvent {
 public:
  DeviceEvent() {
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
    event_.reset(event);
  }
  cudaEvent_t get() const { return event_.get(); }

 private:
  UniqueHandle<cudaEvent_t, cudaEventDestroy> event_;
};

}  // namespace kvmesh::cuda
