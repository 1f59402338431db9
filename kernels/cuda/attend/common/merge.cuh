// Merges the splits of a block's rows from the workspace, in their order. A thread block has a row,
// each of its warps every fourth 32 columns of it; 16 splits at a time are on their way.
//
// Constants of the kernel (namespace kvmesh): kOverlaps (it may start before what it merges is
// there).
#pragma once

#include "kernels/cuda/attend/common/params.hpp"
#include "kernels/cuda/common/ptx.cuh"

namespace kvmesh::cuda {

constexpr int kMergeWarps = 4;
constexpr unsigned kMergeLanes = 0xFFFFFFFFu;
constexpr float kNoKeys = __builtin_bit_cast(float, 0xFF800000u);

class MergeRow {
 public:
  __device__ MergeRow(const MergeParams& params, const DeviceMerge& merge, int r)
      : p_(params), merge_(merge), first_(merge.workspace_row + r) {
    const std::int64_t token = merge.first_token + r / params.group;
    const std::int64_t head = merge.kv_head * params.group + r % params.group;
    o_ = params.o + token * params.o_token_stride + head * params.o_head_stride;
    lse_ = params.lse + token * params.lse_token_stride + head * params.lse_head_stride;
  }

  __device__ void run() {
    const float merged = merged_lse();
    for (int first = warp() * 32; first < p_.v_dim; first += kMergeWarps * 32) {
      const int column = first + lane();
      const float o = weighted_sum(min(column, p_.v_dim - 1), merged);
      if (column < p_.v_dim) o_[column] = o;
    }
    if (threadIdx.x == 0) *lse_ = merged;
  }

 private:
  __device__ static int warp() { return threadIdx.x / 32; }
  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ std::int64_t row(int split) const {
    return first_ + static_cast<std::int64_t>(split) * merge_.rows;
  }
  __device__ float lse(int split) const { return p_.workspace_lse[row(split)]; }

  __device__ float merged_lse() const {
    float max = kNoKeys;
    for (int s = lane(); s < merge_.splits; s += 32) max = fmaxf(max, lse(s));
    for (int step = 16; step > 0; step /= 2) {
      max = fmaxf(max, __shfl_xor_sync(kMergeLanes, max, step));
    }
    const float shift = max == kNoKeys ? 0.0f : max;
    float sum = 0.0f;
    for (int s = lane(); s < merge_.splits; s += 32) sum += expf(lse(s) - shift);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kMergeLanes, sum, step);
    return sum == 0.0f ? kNoKeys : shift + logf(sum);
  }

  /// Over the splits in order; each lane computes the weight of one of 32.
  __device__ float weighted_sum(int column, float merged) const {
    const float* from = p_.workspace_o + first_ * p_.v_dim + column;
    const std::int64_t split_stride = static_cast<std::int64_t>(merge_.rows) * p_.v_dim;
    float o = 0.0f;
    for (int begin = 0; begin < merge_.splits; begin += 32) {
      const int own = begin + lane();
      const float own_lse = own < merge_.splits ? lse(own) : kNoKeys;
      const float weight = own_lse == kNoKeys ? 0.0f : expf(own_lse - merged);
      const int count = min(32, merge_.splits - begin);
#pragma unroll 16
      for (int j = 0; j < 32; ++j) {
        const float w = __shfl_sync(kMergeLanes, weight, j);
        if (j < count) o += w * from[(begin + j) * split_stride];
      }
    }
    return o;
  }

  const MergeParams& p_;
  const DeviceMerge& merge_;
  const std::int64_t first_;
  float* o_;
  float* lse_;
};

}  // namespace kvmesh::cuda

/// Grid: (merges, the rows of the largest). Block: 32 * kMergeWarps. One block an SM is enough: the
/// registers go to the rows that are on their way.
extern "C" __global__ void __launch_bounds__(32 * kvmesh::cuda::kMergeWarps, 1)
    kvmesh_merge(const __grid_constant__ kvmesh::cuda::MergeParams params) {
  using namespace kvmesh::cuda;
  const DeviceMerge merge = params.merges[blockIdx.x];
  if constexpr (kvmesh::kOverlaps) griddepcontrol_wait();
  const int r = static_cast<int>(blockIdx.y);
  if (r < merge.rows) MergeRow(params, merge, r).run();
}
