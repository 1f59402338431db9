// Adds the splits of exact rows, and finishes the rows or leaves them as they are, for the ranks
// that own them. Sums of integers, so neither the splits nor the order matter; a row is rounded
// once, here.
//
// Constants of the kernel (namespace kvmesh): kDimV, kOverlaps (it may start before what it merges
// is there: Hopper and later).
#pragma once

#include "core/cuda/warp.cuh"
#include "core/pod/row_merge.hpp"
#include "kernels/cuda/attend/common/output.cuh"
#include "kernels/cuda/attend/exact/exact_params.hpp"
#include "kernels/cuda/attend/exact/ordered_bits.cuh"
#include "kernels/cuda/common/ptx.cuh"

namespace kvmesh::cuda {

constexpr int kRowDim = static_cast<int>(exact_row_dim(kDimV));
constexpr int kRowChunks = (kRowDim + kExactMergeColumns - 1) / kExactMergeColumns;
/// Splits that a warp adds one after another before a row is worth another warp.
constexpr int kSplitsPerWarp = 4;

/// Sums of two neighbours.
struct ColumnSums {
  longlong2 high, low;
};

__device__ inline longlong2 add(const longlong2& a, const longlong2& b) {
  return {a.x + b.x, a.y + b.y};
}

/// A finished row: its outputs are the sums, in units of the bin below the top, times `scale`,
/// rounded to float32, times `factor`.
struct FinishedRow {
  double scale;
  float factor;
  float lse;
};

/// The head of all splits together.
__device__ inline float natural_lse(const ExactRowHead& head) {
  if (!(head.max > kNoKeys)) return head.max;  // none, or NaN
  constexpr double kLn2 = 0.693147180559945309417;
  const float counted = fminf(fmaxf(head.max, -kLargestScore), kLargestScore);
  const double sum = log(in_low_units(head.sum)) + kBinBits * (head.sum_bin - 1) * kLn2;
  return static_cast<float>(sum + (double{head.max} - double{counted}));
}

__device__ inline FinishedRow finish(const ExactRowHead& head, const float* sink) {
  FinishedRow row{0.0, 1.0f, natural_lse(head)};
  if (head.max != head.max || head.o_bin == kNotFinite) {
    row.scale = __longlong_as_double(0x7FF8'0000'0000'0000);
  } else if (head.o_bin != kNoBin) {
    row.scale = ldexp(1.0 / in_low_units(head.sum), kBinBits * (head.o_bin - head.sum_bin));
  }
  if (sink != nullptr) {
    const float merged = lse_with_sink(row.lse, *sink);
    row.factor = merge_weight(row.lse, merged, [](float x) { return expf(x); });
    row.lse = merged;
  }
  return row;
}

/// A warp's part of one row: splits `first`, `first + step`, ...
class ExactMergeRow {
 public:
  __device__ ExactMergeRow(const ExactMergeParams& params, const DeviceMerge& merge, int r)
      : rows_(params.rows + (merge.workspace_row + r) * exact_row_bytes(kDimV)),
        stride_(merge.rows * exact_row_bytes(kDimV)),
        splits_(merge.splits) {}

  /// The head over all splits, in every lane.
  __device__ ExactRowHead merged_head() const {
    std::int32_t max = ordered_bits(kNoKeys), o_bin = kNoBin, sum_bin = kNoBin;
    for (int s = lane(); s < splits_; s += 32) {
      const ExactRowHead& own = head(s);
      max = ::max(max, ordered_bits(own.max));
      o_bin = ::max(o_bin, own.o_bin);
      sum_bin = ::max(sum_bin, own.sum_bin);
    }
    max = __reduce_max_sync(kAllLanes, max);
    o_bin = __reduce_max_sync(kAllLanes, o_bin);
    sum_bin = __reduce_max_sync(kAllLanes, sum_bin);
    ExactSum sum{};
    for (int s = lane(); s < splits_; s += 32) {
      const ExactSum own = raised(head(s).sum, head(s).sum_bin, sum_bin);
      sum = {sum.high + own.high, sum.low + own.low};
    }
    for (int bit = 16; bit > 0; bit /= 2) {
      sum.high += __shfl_xor_sync(kAllLanes, sum.high, bit);
      sum.low += __shfl_xor_sync(kAllLanes, sum.low, bit);
    }
    return {from_ordered_bits(max), o_bin, sum_bin, 0, sum};
  }

  /// Sums columns `column` and the next, in bin `o_bin`.
  __device__ ColumnSums add_columns(int column, std::int32_t o_bin, int first, int step) const {
    ColumnSums sums{};
    if (column >= kRowDim) return sums;
#pragma unroll 4
    for (int s = first; s < splits_; s += step) {
      const std::int32_t below = o_bin - head(s).o_bin;
      if (below > 1) continue;
      const longlong2 high = load(s, column);
      if (below == 1) {
        sums.low = add(sums.low, high);
      } else {
        sums.high = add(sums.high, high);
        sums.low = add(sums.low, load(s, kRowDim + column));
      }
    }
    return sums;
  }

 private:
  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ const ExactRowHead& head(int split) const {
    return *reinterpret_cast<const ExactRowHead*>(rows_ + split * stride_);
  }
  __device__ longlong2 load(int split, int element) const {
    return __ldcg(reinterpret_cast<const longlong2*>(&head(split) + 1) + element / 2);
  }

  const char* const rows_;
  const std::int64_t stride_;
  const int splits_;
};

/// A thread block merges some rows of one merge, kExactMergeWarps / warps_ at a time.
class ExactMergeBlock {
 public:
  /// `sums` [kExactMergeWarps][32] is shared.
  __device__ ExactMergeBlock(const ExactMergeParams& params, const DeviceMerge& merge,
                             ColumnSums* sums)
      : p_(params), merge_(merge), sums_(sums) {
    while (warps_ < kExactMergeWarps && warps_ * kSplitsPerWarp < merge.splits) warps_ *= 2;
  }

  __device__ void run() {
    const int at_once = kExactMergeWarps / warps_;
    for (int first = blockIdx.y * at_once; first < merge_.rows; first += gridDim.y * at_once) {
      merge_row(first + warp() / warps_);
    }
  }

 private:
  __device__ static int warp() { return threadIdx.x / 32; }
  __device__ static int lane() { return threadIdx.x % 32; }

  /// All warps call it, also those whose row does not exist.
  __device__ void merge_row(int r) {
    const bool is_there = r < merge_.rows;
    const ExactMergeRow row(p_, merge_, is_there ? r : 0);
    const ExactRowHead head = row.merged_head();
    const int token = merge_.first_token + r / p_.group;
    const int q_head = merge_.kv_head * p_.group + r % p_.group;
    const bool puts = is_there && warp() % warps_ == 0;
    FinishedRow finished{};
    if (p_.to_rows == nullptr) {
      const bool has_sink = p_.sinks != nullptr && merge_.counts_sinks && is_there;
      finished = finish(head, has_sink ? p_.sinks + q_head : nullptr);
      if (puts && lane() == 0) put_lse(p_.out, token, q_head, finished.lse);
    } else if (puts && lane() == 0) {
      *row_at(token, q_head) = head;
    }
    for (int chunk = 0; chunk < kRowChunks; ++chunk) {
      const int column = chunk * kExactMergeColumns + 2 * lane();
      ColumnSums sums = row.add_columns(column, head.o_bin, warp() % warps_, warps_);
      if (warps_ > 1) sums = add_warps(sums);
      if (puts) put(token, q_head, column, sums, finished);
    }
  }

  __device__ ExactRowHead* row_at(int token, int q_head) const {
    const std::int64_t row = static_cast<std::int64_t>(token) * p_.q_heads + q_head;
    return reinterpret_cast<ExactRowHead*>(p_.to_rows + row * exact_row_bytes(kDimV));
  }

  __device__ void put(int token, int q_head, int column, const ColumnSums& sums,
                      const FinishedRow& row) const {
    if (column >= (p_.to_rows == nullptr ? kDimV : kRowDim)) return;
    if (p_.to_rows != nullptr) {
      auto* to = reinterpret_cast<longlong2*>(row_at(token, q_head) + 1) + column / 2;
      to[0] = sums.high;
      to[kRowDim / 2] = sums.low;
      return;
    }
    const auto value = [&](long long high, long long low) {
      return static_cast<float>(in_low_units({high, low}) * row.scale) * row.factor;
    };
    output_row(p_.out, token, q_head)
        .put_pair(column, value(sums.high.x, sums.low.x), value(sums.high.y, sums.low.y));
  }

  /// Gives the first warp of each row the sum over all of its warps.
  __device__ ColumnSums add_warps(const ColumnSums& own) const {
    __syncthreads();  // the sums are free
    sums_[threadIdx.x] = own;
    __syncthreads();
    ColumnSums sums = own;
    if (warp() % warps_ != 0) return sums;
    for (int w = 1; w < warps_; ++w) {
      const ColumnSums& other = sums_[threadIdx.x + 32 * w];
      sums = {add(sums.high, other.high), add(sums.low, other.low)};
    }
    return sums;
  }

  const ExactMergeParams& p_;
  const DeviceMerge& merge_;
  ColumnSums* const sums_;
  int warps_ = 1;
};

}  // namespace kvmesh::cuda

/// Grid: (merges at the most, any). Block: 32 * kExactMergeWarps.
extern "C" __global__ void __launch_bounds__(32 * kvmesh::cuda::kExactMergeWarps)
    kvmesh_merge_exact(const __grid_constant__ kvmesh::cuda::ExactMergeParams params) {
  using namespace kvmesh::cuda;
  __shared__ ColumnSums sums[32 * kExactMergeWarps];
  // As in common/merge.cuh: thread blocks without work wait, too.
  const bool has_work = static_cast<int>(blockIdx.x) < *params.merge_count;
  DeviceMerge merge{};
  if (has_work) merge = params.merges[blockIdx.x];
  if constexpr (kvmesh::kOverlaps) {
    griddepcontrol_wait();
    griddepcontrol_launch_dependents();
  }
  if (has_work) ExactMergeBlock(params, merge, sums).run();
}
