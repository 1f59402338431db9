// The bare gather of one workload's pages, ready to be launched.
#pragma once

#include <vector>

#include "kvmesh/device_memory.hpp"
#include "launch/bench/cuda_handles.hpp"
#include "launch/bench/gather_kernel.hpp"
#include "launch/bench/machine.hpp"

namespace kvmesh::bench {

/// Returns true if the kernel can read these pages: they are contiguous, their rows have whole
/// 16-byte units, and a head takes less than 16 GB.
bool can_gather(const KvPool& pool);

class GpuGather {
 public:
  /// Copies the lists to the device, through `stream`. REQUIRES: can_gather of every pool.
  GpuGather(const PageReads& reads, Device device, int multiprocessors, cudaStream_t stream);

  /// Call i reads layer i % layers. Asynchronous; may be captured.
  void enqueue(int call, int blocks, cudaStream_t stream) const;

  /// Returns the exclusive or of all 32-bit words read so far. Blocking.
  unsigned sum(cudaStream_t stream) const;

 private:
  std::vector<KvPool> pools_;
  DeviceMemory pages_, parts_, counters_;
  GatherParams params_;
};

}  // namespace kvmesh::bench
