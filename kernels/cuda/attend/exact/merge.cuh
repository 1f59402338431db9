// Merges the splits of rows of exact sums: integers, so their order is of no consequence.
#pragma once

#include "kernels/cuda/attend/common/params.hpp"
#include "kernels/cuda/attend/exact/exact_row.cuh"

/// Grid: (merges at the most, any). Block: 32 * kMergeWarps. `out.o` is rows of exact sums, with
/// strides in rows.
extern "C" __global__ void __launch_bounds__(32 * kvmesh::cuda::kMergeWarps, 1)
    kvmesh_merge_exact(const __grid_constant__ kvmesh::cuda::MergeParams params) {
  using namespace kvmesh::cuda;
  if (static_cast<int>(blockIdx.x) >= *params.merge_count) return;
  const DeviceMerge merge = params.merges[blockIdx.x];
  const int warps = gridDim.y * kMergeWarps;
  for (int r = blockIdx.y * kMergeWarps + threadIdx.x / 32; r < merge.rows; r += warps) {
    ExactRowSums sums;
    for (int split = 0; split < merge.splits; ++split) {
      const std::int64_t row = std::int64_t{merge.workspace_row} + split * merge.rows + r;
      sums.merge({const_cast<float*>(params.workspace_o), row});
    }
    const std::int64_t token = merge.first_token + r / params.group;
    const std::int64_t head = merge.kv_head * params.group + r % params.group;
    sums.store({params.out.o, token * params.out.o_token_stride + head * params.out.o_head_stride});
  }
}
