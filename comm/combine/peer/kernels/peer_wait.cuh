// Waits of a kernel for the windows of other ranks.
#pragma once

#include <cstdint>

#include "comm/combine/peer/kernels/peer_window_view.hpp"
#include "core/cuda/device/system_memory.cuh"
#include "core/cuda/device/warp.cuh"

namespace kvmesh::cuda {

// A wait reads the clock once per this many polls: 0.1 ms.
inline constexpr int kPollsBetweenLooks = 256;

/// A thread's waits for peers: bounded by the window's deadline, and all over once one has failed.
class PeerWait {
 public:
  /// Returns whether to go on waiting for `late`. Costs next to nothing for the first polls.
  __device__ bool goes_on(const PeerCall& call, int late, PeerPhase phase) {
    if (++polls_ % kPollsBetweenLooks != 0) return true;
    if (ld_relaxed_sys_u32(call.window.is_broken) != 0) return false;
    const std::uint64_t now = globaltimer();
    if (since_ == 0) since_ = now;
    if (now - since_ < call.window.deadline_ns) return true;
    if (atomicCAS(call.window.is_broken, 0u, 1u) == 0) note(call, late, phase);
    return false;
  }

  /// The same for the rows of all lanes of the warp.
  __device__ bool all_go_on(const PeerCall& call, int late) {
    has_failed_ |= !__all_sync(kAllLanes, goes_on(call, late, PeerPhase::kRows));
    return !has_failed_;
  }
  __device__ bool has_failed() const { return has_failed_; }

 private:
  __device__ static void note(const PeerCall& call, int late, PeerPhase phase) {
    PeerFault* fault = call.window.fault;
    fault->late = late;
    fault->layer = call.layer;
    fault->run = call.run;
    fault->operation = call.operation;
    fault->phase = phase;
    st_release_sys_u32(&fault->is_set, 1);
  }

  int polls_ = 0;
  bool has_failed_ = false;
  std::uint64_t since_ = 0;
};

}  // namespace kvmesh::cuda
