// The order of asynchronous work on a device.
#pragma once

namespace kvmesh {

/// A stream of the device that the work runs on, not owned: in CUDA a `cudaStream_t`. Work given to
/// one stream runs in the order in which it was given. Null on the CPU, where work is done when a
/// call returns.
struct Stream {
  void* handle = nullptr;
};

}  // namespace kvmesh
