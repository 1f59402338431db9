// Merges the splits of rows from the workspace, always in the same order. A warp has splits of a
// row, kInFlight of them under way at once; rows of many splits have several warps, whose sums meet
// in shared memory. Merged rows go to the output, or straight to the ranks that own them in the
// combine: then the kernel of the combine only waits for them.
//
// Rows that share a prefix have their splits of it before their own.
//
// Constants of the kernel (namespace kvmesh): kDimV, kMergesShared (some rows share a prefix),
// kOverlaps (it may start before what it merges is there: Hopper and later).
#pragma once

#include "core/cuda/device/combine_target.cuh"
#include "core/cuda/device/warp.cuh"
#include "core/pod/row_merge.hpp"
#include "kernels/cuda/attend/common/merge_share.cuh"
#include "kernels/cuda/attend/common/output.cuh"
#include "kernels/cuda/common/ptx.cuh"

namespace kvmesh::cuda {

constexpr int kInFlight = 16;
constexpr int kColumnsPerLane = kMergeColumns / 32;
constexpr int kChunkColumns = kMergeColumns;
constexpr int kChunks = (kDimV + kChunkColumns - 1) / kChunkColumns;
constexpr bool kWholeVectors = kDimV % kColumnsPerLane == 0;

__device__ inline int splits_of(const DeviceMerge& merge) {
  return merge.splits + (kMergesShared ? merge.shared_splits : 0);
}

/// Warps that share the splits of a row: a power of two, so that all splits are under way at once
/// where that is possible.
__device__ inline int warps_of_row(int splits) {
  int warps = 1;
  while (warps < kMergeWarps && warps * kInFlight < splits) warps *= 2;
  return warps;
}

/// Merged splits of a row: a lane has the sums of some columns, exp(LSE - merge_shift(max)) * O of
/// each split. All lanes have the same `max` of the LSEs, and `sum`, that of the factors.
struct MergedSplits {
  float max = kNoKeys;
  float sum = 0.0f;
  float o[kColumnsPerLane] = {};

  /// Returns the factor for sums whose shift is `other_max`'s, after raising the maximum to it.
  __device__ float raise(float other_max) {
    const float top = fmaxf(max, other_max);
    const float shift = merge_shift(top);
    const float keep = max == top ? 1.0f : weight(max, shift);
    max = top;
    sum *= keep;
#pragma unroll
    for (int c = 0; c < kColumnsPerLane; ++c) o[c] *= keep;
    return weight(other_max, shift);
  }

  /// exp(lse - shift); 0 of an empty split.
  __device__ static float weight(float lse, float shift) {
    return merge_weight(lse, shift, [](float x) { return expf(x); });
  }
};

/// MergedSplits of a warp.
struct WarpSums {
  float2 max_and_sum;
  float o[kColumnsPerLane][32];
};

/// A warp's part of the merge of one row: splits `first`, `first + step`, ...
class MergeRow {
 public:
  __device__ MergeRow(const MergeParams& params, const DeviceMerge& merge, int r, int first,
                      int step)
      : p_(params),
        merge_(merge),
        first_row_(merge.workspace_row + r),
        first_(first),
        step_(step) {}

  /// Merges columns [column, column + kColumnsPerLane). All loads of kInFlight splits are under way
  /// before the first is needed: lane i has the LSE of the i-th.
  __device__ MergedSplits merged(int column) const {
    MergedSplits all;
    for (int begin = first_; begin - first_ < splits(); begin += kInFlight * step_) {
      float columns[kInFlight][kColumnsPerLane];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        if (begin + i * step_ < splits()) load(begin + i * step_, column, columns[i]);
      }
      const int own = begin + lane() * step_;
      const float own_lse = lane() < kInFlight && own < splits() ? lse(own) : kNoKeys;
      all.raise(warp_max(own_lse));
      const float weight = MergedSplits::weight(own_lse, merge_shift(all.max));
      all.sum += warp_sum(weight);
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const float w = __shfl_sync(kAllLanes, weight, i);
        if (begin + i * step_ >= splits()) continue;
#pragma unroll
        for (int c = 0; c < kColumnsPerLane; ++c) all.o[c] += w * columns[i][c];
      }
    }
    return all;
  }

  /// LSE of all splits and the row's sink.
  __device__ float lse_of(const MergedSplits& all) const {
    const float lse = all.sum == 0.0f ? kNoKeys : merge_shift(all.max) + logf(all.sum);
    if (p_.sinks == nullptr || !merge_.counts_sinks) return lse;
    return lse_with_sink(lse, p_.sinks[merge_.kv_head * p_.group + r() % p_.group]);
  }

 private:
  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ int splits() const { return splits_of(merge_); }
  __device__ int r() const { return static_cast<int>(first_row_ - merge_.workspace_row); }
  __device__ std::int64_t row(int split) const {
    if constexpr (kMergesShared) {
      if (split < merge_.shared_splits) {
        return merge_.shared_row + r() + static_cast<std::int64_t>(split) * merge_.shared_rows;
      }
      split -= merge_.shared_splits;
    }
    return first_row_ + static_cast<std::int64_t>(split) * merge_.rows;
  }
  __device__ float lse(int split) const { return __ldcg(p_.workspace_lse + row(split)); }

  __device__ void load(int split, int column, float (&columns)[kColumnsPerLane]) const {
    const float* from = p_.workspace_o + row(split) * kDimV + column;
    if constexpr (kWholeVectors) {
      const float4 four = column < kDimV ? __ldcg(reinterpret_cast<const float4*>(from)) : float4{};
      columns[0] = four.x;
      columns[1] = four.y;
      columns[2] = four.z;
      columns[3] = four.w;
    } else {
#pragma unroll
      for (int c = 0; c < kColumnsPerLane; ++c) {
        columns[c] = column + c < kDimV ? __ldcg(from + c) : 0.0f;
      }
    }
  }

  const MergeParams& p_;
  const DeviceMerge& merge_;
  const std::int64_t first_row_;
  const int first_, step_;
};

/// A thread block merges some chunks of the rows of one merge, kMergeWarps / warps_of_row at a
/// time.
class MergeBlock {
 public:
  /// `sums` [kMergeWarps] is shared. `epoch`: of the combine that rows go to.
  __device__ MergeBlock(const MergeParams& params, const DeviceMerge& merge, WarpSums* sums,
                        std::uint32_t epoch)
      : p_(params),
        merge_(merge),
        sums_(sums),
        epoch_(epoch),
        warps_(warps_of_row(splits_of(merge))) {}

  __device__ void run(const MergeShare& share) {
    const int at_once = kMergeWarps / warps_;
    const int chunks = merge_.rows * kChunks;
    for (int first = share.part * at_once; first < chunks; first += share.parts * at_once) {
      const int chunk = first + warp() / warps_;
      merge_chunk(chunk / kChunks, chunk % kChunks);
    }
  }

 private:
  __device__ static int warp() { return threadIdx.x / 32; }
  __device__ static int lane() { return threadIdx.x % 32; }

  /// All warps call it, also those whose row does not exist.
  __device__ void merge_chunk(int r, int chunk) {
    const bool is_there = r < merge_.rows;
    const MergeRow row(p_, merge_, is_there ? r : 0, warp() % warps_, warps_);
    const int column = chunk * kChunkColumns + lane() * kColumnsPerLane;
    MergedSplits all = row.merged(column);
    if (warps_ > 1) add_warps(all);
    if (!is_there || warp() % warps_ != 0) return;
    const float lse = row.lse_of(all);
    // Without a sink 1 / sum.
    const float factor = all.sum == 0.0f ? 0.0f : expf(merge_shift(all.max) - lse);
#pragma unroll
    for (int c = 0; c < kColumnsPerLane; ++c) all.o[c] *= factor;
    finish(r, chunk == 0, column, all.o, lse);
  }

  __device__ void finish(int r, bool puts_lse, int column, const float (&o)[kColumnsPerLane],
                         float lse) const {
    const int token = merge_.first_token + r / p_.group;
    const int head = merge_.kv_head * p_.group + r % p_.group;
    if (p_.to.ranks > 0) return send(token, head, column, o, lse);
    put(output_row(p_.out, token, head), column, o);
    if (puts_lse && lane() == 0) put_lse(p_.out, token, head, lse);
  }

  __device__ static void put(const OutputRow& to, int column, const float (&o)[kColumnsPerLane]) {
#pragma unroll
    for (int c = 0; c < kColumnsPerLane; c += 2) {
      if (column + c + 1 < kDimV) {
        to.put_pair(column + c, o[c], o[c + 1]);
      } else if (column + c < kDimV) {
        to.put(column + c, o[c]);
      }
    }
  }

  __device__ void send(int token, int head, int column, const float (&o)[kColumnsPerLane],
                       float lse) const {
    if (column >= kDimV || (participants_of(p_.to, token) >> p_.to.rank & 1) == 0) return;
    store_four(p_.to, place_of_row(p_.to, token, head), column, o, lse, epoch_);
  }

  /// Gives the first warp of each row the splits of all of its warps, in their order.
  __device__ void add_warps(MergedSplits& all) const {
    __syncthreads();  // the sums are free
    WarpSums& own = sums_[warp()];
    if (lane() == 0) own.max_and_sum = float2{all.max, all.sum};
#pragma unroll
    for (int c = 0; c < kColumnsPerLane; ++c) own.o[c][lane()] = all.o[c];
    __syncthreads();
    if (warp() % warps_ != 0) return;
    for (int w = 1; w < warps_; ++w) {
      const WarpSums& other = sums_[warp() + w];
      const float factor = all.raise(other.max_and_sum.x);
      all.sum += factor * other.max_and_sum.y;
#pragma unroll
      for (int c = 0; c < kColumnsPerLane; ++c) all.o[c] += factor * other.o[c][lane()];
    }
  }

  const MergeParams& p_;
  const DeviceMerge& merge_;
  WarpSums* const sums_;
  const std::uint32_t epoch_;
  const int warps_;
};

}  // namespace kvmesh::cuda

/// Thread blocks per SM. Chips before Hopper have too few registers for two.
constexpr int kMergeBlocksPerSm = kvmesh::kOverlaps ? 2 : 1;

/// Grid: as many thread blocks as merges, or more. Block: 32 * kMergeWarps.
extern "C" __global__ void __launch_bounds__(32 * kvmesh::cuda::kMergeWarps, kMergeBlocksPerSm)
    kvmesh_merge(const __grid_constant__ kvmesh::cuda::MergeParams params) {
  using namespace kvmesh::cuda;
  __shared__ WarpSums sums[kMergeWarps];
  // The plan was complete before attention began. All thread blocks wait for attention's results,
  // also those without work, or this kernel would end before attention.
  const MergeShare share = merge_share(*params.merge_count);
  DeviceMerge merge{};
  if (share.merge >= 0) merge = params.merges[share.merge];
  if constexpr (kvmesh::kOverlaps) {
    griddepcontrol_wait();
    griddepcontrol_launch_dependents();
  }
  const std::uint32_t epoch = params.to.ranks > 0 ? *params.to.last_epoch + 1 : 0;
  if (share.merge >= 0) MergeBlock(params, merge, sums, epoch).run(share);
}
