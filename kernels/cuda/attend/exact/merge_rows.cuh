// Adds the parts of exact rows, which are the splits of a rank or the rows of several ranks, and
// finishes the rows or leaves them as they are. Sums of integers, so neither the parts nor the
// order matter; a row is rounded once, here.
//
// Constant of the kernel (namespace kvmesh): kDimV.
#pragma once

#include "core/cuda/device/warp.cuh"
#include "core/pod/row_merge.hpp"
#include "kernels/cuda/attend/common/output.cuh"
#include "kernels/cuda/attend/exact/exact_params.hpp"
#include "kernels/cuda/attend/exact/ordered_bits.cuh"

namespace kvmesh::cuda {

constexpr int kRowDim = static_cast<int>(exact_row_dim(kDimV));
constexpr int kRowChunks = (kRowDim + kExactMergeColumns - 1) / kExactMergeColumns;
/// Parts that a warp adds one after another before a row is worth another warp.
constexpr int kPartsPerWarp = 4;

/// Sums of two neighbours.
struct ColumnSums {
  longlong2 high, low;
};

__device__ inline longlong2 add(const longlong2& a, const longlong2& b) {
  return {a.x + b.x, a.y + b.y};
}

/// `head` is that of all parts together. The multiplication and the addition are one operation,
/// whatever the compiler makes of the kernel around them: one rank and several get the same bits.
__device__ inline float natural_lse(const ExactRowHead& head) {
  if (!(head.max > kNoKeys)) return head.max;  // none, or NaN
  constexpr double kLn2 = 0.693147180559945309417;
  const float counted = fminf(fmaxf(head.max, -kLargestScore), kLargestScore);
  const double sum =
      fma(static_cast<double>(kBinBits * (head.sum_bin - 1)), kLn2, log(in_low_units(head.sum)));
  return static_cast<float>(sum + (double{head.max} - double{counted}));
}

/// Where a row goes as it is.
class KeptRow {
 public:
  __device__ explicit KeptRow(ExactRowHead* to) : to_(to) {}

  __device__ bool exists() const { return to_ != nullptr; }
  static constexpr int columns() { return kRowDim; }
  /// By all lanes of the warps that add the row.
  __device__ void begin(const ExactRowHead&) {}
  /// By one lane.
  __device__ void put_head(const ExactRowHead& head) const { *to_ = head; }
  /// Stores columns `column` and the next.
  __device__ void put(int column, const ColumnSums& sums) const {
    auto* to = reinterpret_cast<longlong2*>(to_ + 1) + column / 2;
    to[0] = sums.high;
    to[kRowDim / 2] = sums.low;
  }

 private:
  ExactRowHead* to_;  // null: nowhere
};

/// Where a row goes as the output. Its elements are the sums, in units of the bin below the top,
/// times `scale_`, rounded to float32, times `factor_`.
class FinishedRow {
 public:
  __device__ FinishedRow(const AttendOutput& out, int token, int head, const float* sink,
                         bool exists = true)
      : out_(out), token_(token), head_(head), sink_(sink), exists_(exists) {}

  __device__ bool exists() const { return exists_; }
  static constexpr int columns() { return kDimV; }
  __device__ void begin(const ExactRowHead& head) {
    lse_ = natural_lse(head);
    if (head.max != head.max || head.o_bin == kNotFinite) {
      scale_ = __longlong_as_double(0x7FF8'0000'0000'0000);
    } else if (head.o_bin != kNoBin) {
      scale_ = ldexp(1.0 / in_low_units(head.sum), kBinBits * (head.o_bin - head.sum_bin));
    }
    if (sink_ == nullptr) return;
    const float merged = lse_with_sink(lse_, *sink_);
    factor_ = merge_weight(lse_, merged, [](float x) { return expf(x); });
    lse_ = merged;
  }
  __device__ void put_head(const ExactRowHead&) const { put_lse(out_, token_, head_, lse_); }
  __device__ void put(int column, const ColumnSums& sums) const {
    const auto value = [&](long long high, long long low) {
      return static_cast<float>(in_low_units({high, low}) * scale_) * factor_;
    };
    output_row(out_, token_, head_)
        .put_pair(column, value(sums.high.x, sums.low.x), value(sums.high.y, sums.low.y));
  }

 private:
  const AttendOutput& out_;
  int token_, head_;
  const float* sink_;
  bool exists_;
  double scale_ = 0.0;
  float factor_ = 1.0f;
  float lse_ = 0.0f;
};

/// Adds one row. `Parts` has `count()` and `head(i)`: null, if `kMayLack`, where there is no part.
template <class Parts>
class ExactMergeRow {
 public:
  __device__ explicit ExactMergeRow(const Parts& parts) : parts_(parts) {}

  /// The head over all parts, in every lane. Few rows have more than 32: unrolled loops would only
  /// take registers.
  __device__ ExactRowHead merged_head() const {
    std::int32_t max = ordered_bits(kNoKeys), o_bin = kNoBin, sum_bin = kNoBin;
#pragma unroll 1
    for (int i = lane(); i < parts_.count(); i += 32) {
      const ExactRowHead* own = parts_.head(i);
      if (Parts::kMayLack && own == nullptr) continue;
      max = ::max(max, ordered_bits(own->max));
      o_bin = ::max(o_bin, own->o_bin);
      sum_bin = ::max(sum_bin, own->sum_bin);
    }
    max = __reduce_max_sync(kAllLanes, max);
    o_bin = __reduce_max_sync(kAllLanes, o_bin);
    sum_bin = __reduce_max_sync(kAllLanes, sum_bin);
    ExactSum sum{};
#pragma unroll 1
    for (int i = lane(); i < parts_.count(); i += 32) {
      const ExactRowHead* head = parts_.head(i);
      if (Parts::kMayLack && head == nullptr) continue;
      const ExactSum own = raised(head->sum, head->sum_bin, sum_bin);
      sum = {sum.high + own.high, sum.low + own.low};
    }
    for (int bit = 16; bit > 0; bit /= 2) {
      sum.high += __shfl_xor_sync(kAllLanes, sum.high, bit);
      sum.low += __shfl_xor_sync(kAllLanes, sum.low, bit);
    }
    return {from_ordered_bits(max), o_bin, sum_bin, 0, sum};
  }

  /// Sums columns `column` and the next, in bin `o_bin`, of parts `first`, `first + step`, ...
  __device__ ColumnSums add_columns(int column, std::int32_t o_bin, int first, int step) const {
    ColumnSums sums{};
    if (column >= kRowDim) return sums;
#pragma unroll 4
    for (int i = first; i < parts_.count(); i += step) {
      const ExactRowHead* head = parts_.head(i);
      if (Parts::kMayLack && head == nullptr) continue;
      const std::int32_t below = o_bin - head->o_bin;
      if (below > 1) continue;
      const longlong2 high = load(head, column);
      if (below == 1) {
        sums.low = add(sums.low, high);
      } else {
        sums.high = add(sums.high, high);
        sums.low = add(sums.low, load(head, kRowDim + column));
      }
    }
    return sums;
  }

 private:
  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static longlong2 load(const ExactRowHead* head, int element) {
    return __ldcg(reinterpret_cast<const longlong2*>(head + 1) + element / 2);
  }

  const Parts parts_;
};

/// A thread block merges some of the rows, kExactMergeWarps / warps_ at a time. `Rows` has
/// `count()` rows with at most `most_parts()`, `parts(r)`, and `end(r)`, a KeptRow or
/// a FinishedRow.
template <class Rows>
class ExactMergeBlock {
 public:
  /// `sums` [kExactMergeWarps][32] is shared.
  __device__ ExactMergeBlock(const Rows& rows, ColumnSums* sums) : rows_(rows), sums_(sums) {
    while (warps_ < kExactMergeWarps && warps_ * kPartsPerWarp < rows.most_parts()) warps_ *= 2;
  }

  /// This thread block is number `block` of `blocks`.
  __device__ void run(int block, int blocks) {
    const int at_once = kExactMergeWarps / warps_;
    for (int first = block * at_once; first < rows_.count(); first += blocks * at_once) {
      merge_row(first + warp() / warps_);
    }
  }

 private:
  __device__ static int warp() { return threadIdx.x / 32; }
  __device__ static int lane() { return threadIdx.x % 32; }

  /// All warps call it, also those whose row does not exist.
  __device__ void merge_row(int r) {
    const bool is_there = r < rows_.count();
    const ExactMergeRow row(rows_.parts(is_there ? r : 0));
    const ExactRowHead head = row.merged_head();
    auto end = rows_.end(is_there ? r : 0);
    end.begin(head);
    const bool puts = is_there && end.exists() && warp() % warps_ == 0;
    if (puts && lane() == 0) end.put_head(head);
    for (int chunk = 0; chunk < kRowChunks; ++chunk) {
      const int column = chunk * kExactMergeColumns + 2 * lane();
      ColumnSums sums = row.add_columns(column, head.o_bin, warp() % warps_, warps_);
      if (warps_ > 1) sums = add_warps(sums);
      if (puts && column < end.columns()) end.put(column, sums);
    }
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

  const Rows& rows_;
  ColumnSums* const sums_;
  int warps_ = 1;
};

}  // namespace kvmesh::cuda
