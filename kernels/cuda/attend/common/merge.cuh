// Merges the splits of rows from the workspace, always in the same order. A thread block has a row
// at a time, each of its warps every fourth split: kInFlight splits of a warp are under way at
// once.
//
// Constants of the kernel (namespace kvmesh): kDimV, kOverlaps (it may start before what it merges
// is there).
#pragma once

#include "core/cuda/warp.cuh"
#include "core/pod/row_merge.hpp"
#include "kernels/cuda/attend/common/params.hpp"
#include "kernels/cuda/common/ptx.cuh"

namespace kvmesh::cuda {

constexpr int kMergeWarps = 4;
constexpr int kInFlight = 16;
constexpr int kColumnsPerLane = 4;
constexpr int kChunkColumns = 32 * kColumnsPerLane;  // of a row at a time
constexpr bool kWholeVectors = kDimV % kColumnsPerLane == 0;

class MergeRow {
 public:
  using Columns = float[kColumnsPerLane];

  __device__ MergeRow(const MergeParams& params, const DeviceMerge& merge, int r)
      : p_(params), merge_(merge), first_(merge.workspace_row + r) {
    const std::int64_t token = merge.first_token + r / params.group;
    const std::int64_t head = merge.kv_head * params.group + r % params.group;
    o_ = params.o + token * params.o_token_stride + head * params.o_head_stride;
    lse_ = params.lse + token * params.lse_token_stride + head * params.lse_head_stride;
  }

  /// `sums` [kMergeWarps][kChunkColumns] is shared.
  __device__ void run(float* sums) {
    for (int first = 0; first < kDimV; first += kChunkColumns) {
      Columns o = {0.0f, 0.0f, 0.0f, 0.0f};
      add_splits(first + lane() * kColumnsPerLane, first == 0, o);
      store_chunk(first, o, sums);
    }
    if (threadIdx.x == 0) *lse_ = merged_;
  }

 private:
  __device__ static int warp() { return threadIdx.x / 32; }
  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ std::int64_t row(int split) const {
    return first_ + static_cast<std::int64_t>(split) * merge_.rows;
  }
  __device__ float lse(int split) const { return __ldcg(p_.workspace_lse + row(split)); }

  __device__ float merged_lse() const {
    float max = kNoKeys;
    for (int s = lane(); s < merge_.splits; s += 32) max = fmaxf(max, lse(s));
    max = warp_max(max);
    const float shift = merge_shift(max);
    float sum = 0.0f;
    for (int s = lane(); s < merge_.splits; s += 32) sum += expf(lse(s) - shift);
    sum = warp_sum(sum);
    return sum == 0.0f ? kNoKeys : shift + logf(sum);
  }

  /// This warp's splits, in order. Their loads are issued before the first is needed, and before
  /// those of the LSEs.
  __device__ void add_splits(int column, bool is_first, Columns& o) {
    for (int begin = warp(); begin - warp() < merge_.splits; begin += kInFlight * kMergeWarps) {
      Columns splits[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int split = begin + i * kMergeWarps;
        if (split < merge_.splits) load(row(split), column, splits[i]);
      }
      if (is_first && begin == warp()) merged_ = merged_lse();
      const int own = begin + lane() * kMergeWarps;
      const float own_lse = lane() < kInFlight && own < merge_.splits ? lse(own) : kNoKeys;
      const float weight = merge_weight(own_lse, merged_, [](float x) { return expf(x); });
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const float w = __shfl_sync(kAllLanes, weight, i);
        if (begin + i * kMergeWarps >= merge_.splits) continue;
#pragma unroll
        for (int c = 0; c < kColumnsPerLane; ++c) o[c] += w * splits[i][c];
      }
    }
  }

  __device__ void load(std::int64_t row, int column, Columns& split) const {
    const float* from = p_.workspace_o + row * kDimV + column;
    if constexpr (kWholeVectors) {
      const float4 columns =
          column < kDimV ? __ldcg(reinterpret_cast<const float4*>(from)) : float4{};
      split[0] = columns.x;
      split[1] = columns.y;
      split[2] = columns.z;
      split[3] = columns.w;
    } else {
#pragma unroll
      for (int c = 0; c < kColumnsPerLane; ++c)
        split[c] = column + c < kDimV ? __ldcg(from + c) : 0;
    }
  }

  __device__ void store_chunk(int first, const Columns& o, float* sums) {
    __syncthreads();  // the sums are free
#pragma unroll
    for (int c = 0; c < kColumnsPerLane; ++c) {
      sums[warp() * kChunkColumns + lane() * kColumnsPerLane + c] = o[c];
    }
    __syncthreads();
    const int column = threadIdx.x;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kMergeWarps; ++w) sum += sums[w * kChunkColumns + column];
    if (first + column < kDimV) o_[first + column] = sum;
  }

  const MergeParams& p_;
  const DeviceMerge& merge_;
  const std::int64_t first_;
  float* o_;
  float* lse_;
  float merged_ = 0.0f;
};

static_assert(kChunkColumns == 32 * kMergeWarps, "a thread stores one column of a chunk");

}  // namespace kvmesh::cuda

/// Grid: any size. Block: 32 * kMergeWarps.
extern "C" __global__ void __launch_bounds__(32 * kvmesh::cuda::kMergeWarps)
    kvmesh_merge(const __grid_constant__ kvmesh::cuda::MergeParams params) {
  using namespace kvmesh::cuda;
  __shared__ float sums[kMergeWarps * kChunkColumns];
  const int items = *params.merge_count * params.rows;
  int item = blockIdx.x;
  // What the plan made was there before attention began, whose results are waited for: by thread
  // blocks without work too, or this kernel would end before attention does.
  DeviceMerge merge{};
  if (item < items) merge = params.merges[item / params.rows];
  if constexpr (kvmesh::kOverlaps) {
    griddepcontrol_wait();
    griddepcontrol_launch_dependents();
  }
  while (item < items) {
    const int r = item % params.rows;
    if (r < merge.rows) MergeRow(params, merge, r).run(sums);
    item += gridDim.x;
    if (item < items) merge = params.merges[item / params.rows];
  }
}
