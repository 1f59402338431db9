// Evaluates both mods at given points, one per thread.
#pragma once

#include "tests/kernels/jit/evaluate_mods_params.hpp"

namespace kvmesh {

extern "C" __global__ void evaluate_mods(const __grid_constant__ EvaluateModsParams p) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= p.count) return;
  p.modified[i] = kvmesh_score_mod(p.score[i], p.b[i], p.h[i], p.q[i], p.kv[i], p.buffers);
  p.visible[i] = kvmesh_mask_mod(p.b[i], p.h[i], p.q[i], p.kv[i], p.buffers) ? 1 : 0;
}

}  // namespace kvmesh
