// Distribution of pieces: thread blocks claim them from a counter when they are free.
#pragma once

#include "kernels/cuda/attend/common/params.hpp"
#include "kernels/cuda/common/ptx.cuh"

namespace kvmesh::cuda {

/// Early thread blocks have the piece of their number first, the others claim it. A thread block
/// claims a piece ahead at its start, and one per piece that it computes. So there are as many
/// claims as pieces, thread blocks, and thread blocks that claim their first piece; with the last
/// claim the counter is 0 again, for the next launch. REQUIRES: every thread block takes part, also
/// one without a piece.
class Pieces {
 public:
  __device__ Pieces(const AttendParams& params, int early_blocks)
      : claim_(params.claim),
        count_(params.task_counts->tasks),
        early_blocks_(min(early_blocks, static_cast<int>(gridDim.x))),
        last_(count_ + 2 * gridDim.x - early_blocks_ - 1) {}

  __device__ int count() const { return count_; }
  /// Whether this thread block's first piece is number blockIdx.x; otherwise it claims one.
  __device__ bool is_early() const { return static_cast<int>(blockIdx.x) < early_blocks_; }

  /// Returns the thread block's next piece, or a number at or past count() if there is none.
  /// REQUIRES: called by one warp. Its first lane gets the number; other lanes get 0.
  __device__ int claim() const {
    int piece = 0;
    if (threadIdx.x % 32 == 0) {
      piece = early_blocks_ + static_cast<int>(atom_inc_relaxed_gpu(claim_, last_));
    }
    return piece;
  }

 private:
  std::uint32_t* claim_;
  int count_;
  int early_blocks_;
  std::uint32_t last_;  // the counter's last value
};

/// The same for a whole thread block, which has piece blockIdx.x first: all of its threads call
/// `next` together.
class BlockPieces {
 public:
  __device__ explicit BlockPieces(const AttendParams& params) : pieces_(params, gridDim.x) {
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
