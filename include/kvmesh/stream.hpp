// The order of asynchronous work on a device.
#pragma once

namespace kvmesh {

/// A stream of the device that the work runs on, not owned: in CUDA a `cudaStream_t`. Work given to
/// one stream runs in the order in which it was given. On the CPU it is null and not looked at:
/// work is done when a call returns. On a GPU null is CUDA's default stream, which also waits for,
/// and holds up, all streams but those made with cudaStreamNonBlocking, and cannot be captured in a
/// graph.
///
/// To wait for a stream use `Mesh::wait` (or `NcclGroup::wait`): they end with a deadline, and
/// notice when NCCL fails. CUDA's own waits do not: a kernel of NCCL whose peer has died never
/// ends.
struct Stream {
  void* handle = nullptr;
};

}  // namespace kvmesh
