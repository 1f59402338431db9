// The order of asynchronous work on a device.
#pragma once

#include "kvmesh/api.h"

namespace KVMESH_API kvmesh {

/// A stream of the device that runs the work, not owned: in CUDA a `cudaStream_t`. Work on one
/// stream runs in the order in which it was submitted.
///
/// On the CPU the handle is null and not read: work is done when a call returns. On a GPU null is
/// CUDA's default stream. It waits for, and delays, all streams except those made with
/// cudaStreamNonBlocking, and it cannot be captured in a graph.
///
/// To wait for a stream use `Mesh::wait` (or `NcclGroup::wait`): these waits end at a deadline and
/// detect failures of NCCL. CUDA's own waits do neither: an NCCL kernel whose peer has died never
/// ends.
struct Stream {
  void* handle = nullptr;
};

}  // namespace kvmesh
