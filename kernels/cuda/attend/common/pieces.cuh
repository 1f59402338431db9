// Who computes which piece: thread blocks claim them from a counter when they are free.
#pragma once

#include "kernels/cuda/attend/common/params.hpp"
#include "kernels/cuda/common/ptx.cuh"

namespace kvmesh::cuda {

/// Piece blockIdx.x is a thread block's first. It claims one at its start and one for each piece
/// that it computes, so there are as many claims as pieces and thread blocks together; with the
/// last of them the counter is 0 again, for the next launch. Every thread block must take part, one
/// without a piece too.
class Pieces {
 public:
  __device__ explicit Pieces(const AttendParams& params)
      : claim_(params.claim), count_(*params.task_count) {}

  __device__ int count() const { return count_; }

  /// The thread block's next piece; at or past count(): there is none. For the first lane of one
  /// warp; other lanes get 0.
  __device__ int claim() const {
    int piece = 0;
    if (threadIdx.x % 32 == 0) {
      piece = static_cast<int>(gridDim.x + atom_inc_relaxed_gpu(claim_, count_ + gridDim.x - 1));
    }
    return piece;
  }

 private:
  std::uint32_t* claim_;
  int count_;
};

/// The same for a whole thread block: each call of `next` is one of all its threads.
class BlockPieces {
 public:
  __device__ explicit BlockPieces(const AttendParams& params) : pieces_(params) {
    if (threadIdx.x == 0) coming_ = pieces_.claim();
  }

  __device__ int count() const { return pieces_.count(); }

  __device__ int next() {
    __shared__ int piece;
    __syncthreads();  // all have read the one before
    if (threadIdx.x == 0) {
      piece = coming_;
      coming_ = pieces_.claim();
    }
    __syncthreads();
    return piece;
  }

 private:
  Pieces pieces_;
  int coming_ = 0;  // of thread 0: claimed ahead
};

}  // namespace kvmesh::cuda
