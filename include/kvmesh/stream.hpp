// The order of asynchronous work on a device.
#pragma once

namespace kvmesh {

/// A stream of the device that the work runs on, not owned: in CUDA a `cudaStream_t`. Work given to
/// one stream runs in the order in which it was given. Null on the CPU, where work is done when a
/// call returns.
///
/// To wait for a stream use `Mesh::wait` (or `NcclGroup::wait`): they end with a deadline, and
/// notice when NCCL fails. CUDA's own waits, and `synchronize`, do not: a kernel of NCCL whose peer
/// has died never ends.
struct Stream {
  void* handle = nullptr;
};

}  // namespace kvmesh
