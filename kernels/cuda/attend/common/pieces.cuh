// Distribution of pieces: thread blocks claim them from a counter when they are free.
#pragma once

#include "kernels/cuda/attend/common/params.hpp"
#include "kernels/cuda/common/ptx.cuh"

namespace kvmesh::cuda {

/// Piece blockIdx.x is a thread block's first. A thread block claims one piece at its start and one
/// per piece that it computes, so there are as many claims as pieces and thread blocks together;
/// with the last claim the counter is 0 again, for the next launch. REQUIRES: every thread block
/// takes part, also one without a piece.
class Pieces {
 public:
  __device__ explicit Pieces(const AttendParams& params)
      : claim_(params.claim), count_(*params.task_count) {}

  __device__ int count() const { return count_; }

  /// Returns the thread block's next piece, or a number at or past count() if there is none.
  /// REQUIRES: called by one warp. Its first lane gets the number; other lanes get 0.
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

/// The same for a whole thread block: all of its threads call `next` together.
class BlockPieces {
 public:
  __device__ explicit BlockPieces(const AttendParams& params) : pieces_(params) {
    if (threadIdx.x == 0) coming_ = pieces_.claim();
  }

  __device__ int count() const { return pieces_.count(); }

  __device__ int next() {
    __shared__ int piece;
    __syncthreads();  // all threads have read the piece before
    if (threadIdx.x == 0) {
      piece = coming_;
      coming_ = pieces_.claim();
    }
    __syncthreads();
    return piece;
  }

 private:
  Pieces pieces_;
  int coming_ = 0;  // claimed ahead; used by thread 0
};

}  // namespace kvmesh::cuda
