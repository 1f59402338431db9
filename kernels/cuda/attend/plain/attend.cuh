// attend_partial without tensor cores, for the cases they cannot compute: float32 and float8 pages,
// any dims, rows that are not aligned to 16 bytes. Each warp computes one row at a time.
#pragma once

#include "kernels/cuda/attend/common/pieces.cuh"
#include "kernels/cuda/attend/plain/plain_row.cuh"

namespace kvmesh::cuda {

constexpr int kPlainWarps = 4;

}  // namespace kvmesh::cuda

/// Grid: any size, pieces are claimed. Block: 32 * kPlainWarps.
extern "C" __global__ void __launch_bounds__(32 * kvmesh::cuda::kPlainWarps)
    kvmesh_attend_plain(const __grid_constant__ kvmesh::cuda::PlainParams params) {
  using namespace kvmesh::cuda;
  __shared__ float queries[kPlainWarps][kvmesh::kDimK];
  const int warp = threadIdx.x / 32;
  BlockPieces pieces(params.attend);
  for (int piece = blockIdx.x; piece < pieces.count(); piece = pieces.next()) {
    const DeviceTask task = params.attend.tasks[piece];
    for (int r = warp; r < task.rows; r += kPlainWarps) {
      PlainRow<4>(params.attend, task, r, queries[warp], &params.scales).run();
    }
  }
}
