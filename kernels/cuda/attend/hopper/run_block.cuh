// A thread block of the kernels for many rows: math warps, a warp that copies pieces and keys, and
// warps that copy queries.
#pragma once

#include "kernels/cuda/attend/common/launch_order.cuh"
#include "kernels/cuda/attend/hopper/hopper_params.hpp"
#include "kernels/cuda/attend/hopper/instructions/tma.cuh"
#include "kernels/cuda/attend/hopper/instructions/wgmma.cuh"

namespace kvmesh::cuda {

/// `Roles` names the classes Shared, Math, Producer and Queries, the number kMathThreads, and
/// kMovesRegisters: whether the math warps get registers of the others, which keep
/// kProducerRegisters. A block of 384 threads has 168 per thread at entry, 3 * 168 = 2 * 224 + 56.
/// `HasMaps`: the copy engine brings the keys.
template <class Roles, bool HasMaps = true>
__device__ __forceinline__ void run_block(const HopperParams& params, char* memory) {
  const typename Roles::Shared shared(memory);
  if (threadIdx.x == 0) {
    shared.init_barriers();
    if constexpr (HasMaps) {
      prefetch_tensormap(params.k_map);
      prefetch_tensormap(params.v_map);
    }
  }
  __syncthreads();
  if (threadIdx.x >= Roles::kMathThreads) {
    if constexpr (Roles::kMovesRegisters) setmaxnreg_dec<Roles::kProducerRegisters>();
    const int thread = threadIdx.x - Roles::kMathThreads;
    if (thread < 32) {
      typename Roles::Producer(params, shared).run();
      end_launch(params.attend);
    } else {
      typename Roles::Queries(params, shared).run(thread - 32);
    }
  } else {
    if constexpr (Roles::kMovesRegisters)
      setmaxnreg_inc<(3 * 168 - Roles::kProducerRegisters) / 2>();
    typename Roles::Math(params, shared).run();
  }
}

}  // namespace kvmesh::cuda
