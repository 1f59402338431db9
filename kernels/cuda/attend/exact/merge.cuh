// The merges of exact rows: of a rank's splits, and of several ranks' rows.
//
// Constants of the kernels (namespace kvmesh): kDimV, kOverlaps (the merge of splits may start
// before they are there: Hopper and later).
#pragma once

#include "kernels/cuda/attend/common/merge_share.cuh"
#include "kernels/cuda/attend/exact/merge_rows.cuh"
#include "kernels/cuda/common/ptx.cuh"

namespace kvmesh::cuda {

constexpr std::int64_t kRowBytes = exact_row_bytes(kDimV);

/// The rows of one merge of splits. `Keeps`: they go to their owners' messages as they are.
template <bool Keeps>
class SplitRows {
 public:
  class Parts {
   public:
    static constexpr bool kMayLack = false;
    __device__ Parts(const char* rows, std::int64_t stride, int count)
        : rows_(rows), stride_(stride), count_(count) {}
    __device__ int count() const { return count_; }
    __device__ const ExactRowHead* head(int split) const {
      return reinterpret_cast<const ExactRowHead*>(rows_ + split * stride_);
    }

   private:
    const char* rows_;
    std::int64_t stride_;
    int count_;
  };

  __device__ SplitRows(const ExactMergeParams& params, const DeviceMerge& merge)
      : p_(params), merge_(merge) {}

  __device__ int count() const { return merge_.rows; }
  __device__ int most_parts() const { return merge_.splits; }
  __device__ Parts parts(int r) const {
    return {p_.rows + (merge_.workspace_row + r) * kRowBytes, merge_.rows * kRowBytes,
            merge_.splits};
  }
  __device__ auto end(int r) const {
    const int token = merge_.first_token + r / p_.group;
    const int head = merge_.kv_head * p_.group + r % p_.group;
    if constexpr (Keeps) {
      const auto [message, row] = p_.to.places.place_to_send(token, head);
      char* rows = reinterpret_cast<char*>(p_.to.rows + message.offset);
      return KeptRow{row < 0 ? nullptr : reinterpret_cast<ExactRowHead*>(rows + row * kRowBytes)};
    } else {
      const bool has_sink = p_.sinks != nullptr && merge_.counts_sinks;
      return FinishedRow(p_.out, token, head, has_sink ? p_.sinks + head : nullptr);
    }
  }

 private:
  const ExactMergeParams& p_;
  const DeviceMerge& merge_;
};

/// The rows that this rank owns, of which each rank has a part.
class RankRows {
 public:
  class Parts {
   public:
    static constexpr bool kMayLack = true;
    __device__ Parts(const ExactCombineParams& params, const RowPlaces::Block& own, int token,
                     int head)
        : p_(params), own_(own), token_(token), head_(head) {}
    __device__ int count() const { return p_.places.owns(token_) ? p_.places.ranks : 0; }
    __device__ const ExactRowHead* head(int rank) const {
      const int row = p_.places.row_in_message(own_, rank, token_, head_);
      if (row < 0) return nullptr;
      const bool is_mine = rank == p_.places.rank;
      const RowMessage message =
          is_mine ? p_.places.message_to(rank) : p_.places.message_from(rank);
      const float* rows = (is_mine ? p_.mine : p_.received) + message.offset;
      return reinterpret_cast<const ExactRowHead*>(reinterpret_cast<const char*>(rows) +
                                                   row * kRowBytes);
    }

   private:
    const ExactCombineParams& p_;
    const RowPlaces::Block& own_;
    int token_, head_;
  };

  __device__ explicit RankRows(const ExactCombineParams& params)
      : p_(params), own_(params.places.block(params.places.rank)) {}

  __device__ int count() const { return own_.rows(); }
  __device__ int most_parts() const { return p_.places.ranks; }
  __device__ Parts parts(int r) const { return {p_, own_, token_of(r), head_of(r)}; }
  __device__ FinishedRow end(int r) const {
    const float* sink = p_.sinks == nullptr ? nullptr : p_.sinks + head_of(r);
    return {p_.out, token_of(r) - own_.tokens.begin, head_of(r) - own_.heads.begin, sink,
            p_.places.owns(token_of(r))};
  }

 private:
  __device__ int token_of(int r) const { return own_.tokens.begin + r / own_.heads.size; }
  __device__ int head_of(int r) const { return own_.heads.begin + r % own_.heads.size; }

  const ExactCombineParams& p_;
  const RowPlaces::Block own_;
};

/// Thread blocks without work wait, too, as in common/merge.cuh.
template <bool Keeps>
__device__ void merge_splits(const ExactMergeParams& params, ColumnSums* sums) {
  const MergeShare share = merge_share(*params.merge_count);
  DeviceMerge merge{};
  if (share.merge >= 0) merge = params.merges[share.merge];
  if constexpr (kOverlaps) {
    griddepcontrol_wait();
    griddepcontrol_launch_dependents();
  }
  if (share.merge < 0) return;
  ExactMergeBlock(SplitRows<Keeps>(params, merge), sums).run(share.part, share.parts);
}

}  // namespace kvmesh::cuda

/// Grid: as many thread blocks as merges, or more. Block: kExactMergeThreads.
extern "C" __global__ void __launch_bounds__(kvmesh::cuda::kExactMergeThreads,
                                             kvmesh::cuda::kExactMergeBlocks)
    kvmesh_merge_exact(const __grid_constant__ kvmesh::cuda::ExactMergeParams params) {
  using namespace kvmesh::cuda;
  __shared__ ColumnSums sums[kExactMergeThreads];
  merge_splits<false>(params, sums);
}

/// The same for rows that leave as they are.
extern "C" __global__ void __launch_bounds__(kvmesh::cuda::kExactMergeThreads,
                                             kvmesh::cuda::kExactMergeBlocks)
    kvmesh_merge_exact_rows(const __grid_constant__ kvmesh::cuda::ExactMergeParams params) {
  using namespace kvmesh::cuda;
  __shared__ ColumnSums sums[kExactMergeThreads];
  merge_splits<true>(params, sums);
}

/// Grid: any. Block: kExactMergeThreads.
extern "C" __global__ void __launch_bounds__(kvmesh::cuda::kExactMergeThreads,
                                             kvmesh::cuda::kExactMergeBlocks)
    kvmesh_combine_exact(const __grid_constant__ kvmesh::cuda::ExactCombineParams params) {
  using namespace kvmesh::cuda;
  __shared__ ColumnSums sums[kExactMergeThreads];
  if constexpr (kvmesh::kOverlaps) {
    griddepcontrol_wait();
    griddepcontrol_launch_dependents();
  }
  ExactMergeBlock(RankRows(params), sums).run(blockIdx.x, gridDim.x);
}
