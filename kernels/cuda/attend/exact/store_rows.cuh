// The end of a block's rows: the warps' sums become ExactRows in memory.
#pragma once

#include "kernels/cuda/attend/exact/exact_sums.cuh"

namespace kvmesh::cuda {

/// Rows [first_row, first_row + kTile.rows()) of a task, by all threads of a block. `is_first`:
/// they are written; else they are added to what was written.
class StoreRows {
 public:
  __device__ StoreRows(const AttendParams& params, const DeviceTask& task, char* shared,
                       int first_row, bool is_first)
      : rows_(params.workspace_rows + (task.workspace_row + first_row) * exact_row_bytes(kDimV)),
        count_(min(task.rows - first_row, kTile.rows())),
        is_first_(is_first),
        joined_(reinterpret_cast<JoinedRow*>(shared + kShared.joined_offset())),
        limbs_(reinterpret_cast<std::uint32_t*>(shared + kShared.q_bytes())) {}

  __device__ void run(ExactSums& sums, const float (&max)[2]) {
    __syncthreads();  // the stages are free, and so are the joined rows
    begin();
    __syncthreads();
    join_bins(sums, max);
    __syncthreads();
    raise_sums(sums);
    if constexpr (kKeyWarps > 1) join_limbs(sums);
    __syncthreads();
    if constexpr (kKeyWarps > 1) {
#pragma unroll 1
      for (int n = warp(); n < kColumnTiles; n += kKeyWarps) store_tile(n, joined_limbs(n));
    } else {
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) store_tile(n, sums.o[n], sums.terms);
    }
    for (int r = threadIdx.x; r < count_; r += kTile.threads()) store_head(r);
    __syncthreads();
  }

 private:
  struct TileLimbs {
    ExactLimbs limbs[4];
  };

  __device__ static int row_of_lane(int j) {
    return (kKeyWarps > 1 ? 0 : warp() / kColumnWarps * kExactWarpRows) + lane() % 4 * 2 + j;
  }
  /// One lane of those that have the same sums of weights.
  __device__ static bool has_weights() {
    return lane() / 4 == 0 && (kKeyWarps > 1 || warp() % kColumnWarps == 0);
  }

  __device__ char* bytes(int r) const { return rows_ + r * exact_row_bytes(kDimV); }
  __device__ ExactRowHead* head(int r) const { return reinterpret_cast<ExactRowHead*>(bytes(r)); }

  __device__ void begin() {
    for (int r = threadIdx.x; r < kTile.rows(); r += kTile.threads()) {
      JoinedRow row{ordered_bits(kNoKeys), kNoBin, kNoBin, kNoBin, kNoBin, {0, 0, 0, 0}};
      if (!is_first_ && r < count_) {
        row.max = ordered_bits(head(r)->max);
        row.o_bin = row.former_o_bin = head(r)->o_bin;
        row.sum_bin = row.former_sum_bin = head(r)->sum_bin;
      }
      joined_[r] = row;
    }
    if constexpr (kKeyWarps > 1) {
      for (int i = threadIdx.x; i < kShared.limbs_bytes() / 4; i += kTile.threads()) limbs_[i] = 0;
    }
  }

  __device__ void join_bins(const ExactSums& sums, const float (&max)[2]) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      JoinedRow& row = joined_[row_of_lane(j)];
      atomicMax(&row.o_bin, sums.o_bin[j]);
      if (!has_weights()) continue;
      atomicMax(&row.sum_bin, sums.sum_bin[j]);
      atomicMax(&row.max, ordered_bits(max[j]));
    }
  }

  __device__ void raise_sums(ExactSums& sums) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      JoinedRow& row = joined_[row_of_lane(j)];
      sums.raise_outputs(j, row.o_bin);
      sums.raise_sum(j, row.sum_bin);
      if (!has_weights()) continue;
      const ExactLimbs own = without_offsets(sums.sum[j], sums.terms);
#pragma unroll
      for (int limb = 0; limb < kLimbs; ++limb) atomicAdd(&row.sum[limb], own.limb[limb]);
    }
  }

  // ---- Where the warps split the keys: limbs [tile][element][limb][lane] ----

  __device__ std::uint32_t* limb_at(int n, int i, int limb) const {
    return limbs_ + ((n * 4 + i) * kLimbs + limb) * 32 + lane();
  }
  __device__ void join_limbs(const ExactSums& sums) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const ExactLimbs own = without_offsets(sums.o[n][i], sums.terms);
#pragma unroll
        for (int limb = 0; limb < kLimbs; ++limb) atomicAdd(limb_at(n, i, limb), own.limb[limb]);
      }
    }
  }
  __device__ TileLimbs joined_limbs(int n) const {
    TileLimbs tile;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int limb = 0; limb < kLimbs; ++limb) tile.limbs[i].limb[limb] = *limb_at(n, i, limb);
    }
    return tile;
  }

  // ---- Into memory ----

  __device__ void store_tile(int n, const TileLimbs& tile) { store_tile(n, tile.limbs, 0); }
  __device__ void store_tile(int n, const ExactLimbs (&limbs)[4], std::uint32_t terms) {
    const int tile = n + (kKeyWarps > 1 ? 0 : warp() % kColumnWarps * kColumnTiles);
    if (kAllColumnTiles % kColumnWarps != 0 && tile >= kAllColumnTiles) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = row_of_lane(i % 2);
      if (r >= count_) continue;
      auto* high =
          reinterpret_cast<std::int64_t*>(head(r) + 1) + tile * 16 + lane() / 4 + i / 2 * 8;
      auto* low = high + kPaddedV;
      ExactSum sum = sum_of(without_offsets(limbs[i], terms));
      if (!is_first_) {
        const ExactSum former = raised({*high, *low}, joined_[r].former_o_bin, joined_[r].o_bin);
        sum = {sum.high + former.high, sum.low + former.low};
      }
      *high = sum.high;
      *low = sum.low;
    }
  }

  __device__ void store_head(int r) {
    const JoinedRow& row = joined_[r];
    ExactSum sum = sum_of({{row.sum[0], row.sum[1], row.sum[2], row.sum[3]}});
    if (!is_first_) {
      const ExactSum former = raised(head(r)->sum, row.former_sum_bin, row.sum_bin);
      sum = {sum.high + former.high, sum.low + former.low};
    }
    *head(r) = {from_ordered_bits(row.max), row.o_bin, row.sum_bin, 0, sum};
  }

  char* const rows_;
  const int count_;
  const bool is_first_;
  JoinedRow* const joined_;
  std::uint32_t* const limbs_;
};

}  // namespace kvmesh::cuda
