// The warps of the prefill kernel that compute, and their barriers.
#pragma once

#include "kernels/cuda/attend/hopper/prefill/prefill_shared.cuh"

namespace kvmesh::cuda {

class PrefillTeam {
 protected:
  __device__ static int warp() { return threadIdx.x / 32; }
  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static int row(int h) { return warp() * 16 + h * 8 + lane() / 4; }

  // The warps that wait for one another at a barrier. If queries come a piece ahead they are one
  // consumer's: consumers then run apart, and one's products fill the time in which the other has
  // none. A barrier per consumer costs registers, which score mods need at dims of 192 and 256.
  static constexpr int kTeamWarps = kPieceRing > 1 ? kConsumerWarps : kMathWarps;
  static constexpr int kTeamThreads = 32 * kTeamWarps;
  __device__ static int team() { return kTeamWarps == kMathWarps ? 0 : warp() / kTeamWarps; }

  /// Launches of shared rows also have tasks of few rows, for which one consumer is enough.
  static constexpr bool kPassesTasks = kHasRowTokens && kTeamWarps == kConsumerWarps;

  __device__ static bool any(bool value) {
    int found;
    asm volatile(
        "{\n.reg .pred in, out;\nsetp.ne.b32 in, %1, 0;\n"
        "barrier.cta.red.or.pred out, %2, %3, in;\nselp.b32 %0, 1, 0, out;\n}"
        : "=r"(found)
        : "r"(static_cast<int>(value)), "r"(1 + team()), "n"(kTeamThreads)
        : "memory");
    return found != 0;
  }
  __device__ static void sync() {
    asm volatile("barrier.cta.sync %0, %1;" ::"r"(1 + team()), "n"(kTeamThreads) : "memory");
  }
  __device__ static void release(std::uint32_t barrier) {
    __syncwarp();
    if (lane() == 0) mbarrier_arrive(barrier);
  }
};

}  // namespace kvmesh::cuda
