// The exact sums of a warp's rows, in registers.
//
// A thread has bins of its own for each of its two rows: the highest that its columns have reached.
// Where rows are joined, sums are raised to the highest bin of all, and are then those that they
// would have been if that bin had been known from the start (core/pod/exact_bins.hpp).
#pragma once

#include "kernels/cuda/attend/exact/weights.cuh"

namespace kvmesh::cuda {

/// A chunk's outputs, relative to the powers of two of its weights.
using ChunkOutputs = Products[kColumnTiles];

class ExactSums {
 public:
  ExactLimbs o[kColumnTiles][4];  // as Products
  ExactLimbs sum[2];              // of the weights of the thread's two rows
  std::int32_t o_bin[2];
  std::int32_t sum_bin[2];
  std::uint32_t terms;  // that each sum has

  __device__ void clear() {
    terms = 0;
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o[n][i] = zero_limbs(0);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      sum[j] = zero_limbs(0);
      o_bin[j] = sum_bin[j] = kNoBin;
    }
  }

  /// Whether the chunk's numbers stay below the sums' top bins. False for what is not finite.
  __device__ bool has_room(const ChunkOutputs& x, const ChunkWeights& weights) const {
    bool fits = true;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      fits &= scale_to(o_bin[j], weights.exponent[j])(largest_output(x, j)) < kTermLimit;
      fits &= scale_to(sum_bin[j], weights.exponent[j])(weights.sum[j]) < kTermLimit;
    }
    return fits;
  }

  /// Raises the bins so that the chunk has room. Outputs that are not finite spoil their row.
  __device__ void make_room(const ChunkOutputs& x, const ChunkWeights& weights) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float largest = largest_output(x, j);
      std::int32_t bin = kNoBin;
      if (!(largest < -kNoKeys)) {
        bin = kNotFinite;
      } else if (largest > 0.0f) {
        bin = bin_of_term(largest, weights.exponent[j]);
      }
      raise_outputs(j, bin);
      if (weights.sum[j] > 0.0f) {
        raise_sum(j, bin_of_term(weights.sum[j], weights.exponent[j]));
      }
    }
  }

  /// REQUIRES: the chunk has room. The sums of a row that is spoilt are never read.
  __device__ void add(const ChunkOutputs& x, const ChunkWeights& weights) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const TermScale scale = scale_to(o_bin[j], weights.exponent[j]);
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        add_term(o[n][j], scale(x[n][j]));
        add_term(o[n][2 + j], scale(x[n][2 + j]));
      }
      add_term(sum[j], scale_to(sum_bin[j], weights.exponent[j])(weights.sum[j]));
    }
    ++terms;
  }

  __device__ void raise_outputs(int j, std::int32_t bin) {
    if (bin <= o_bin[j]) return;
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      raise(o[n][j], o_bin[j], bin, terms);
      raise(o[n][2 + j], o_bin[j], bin, terms);
    }
    o_bin[j] = bin;
  }
  __device__ void raise_sum(int j, std::int32_t bin) {
    if (bin <= sum_bin[j]) return;
    raise(sum[j], sum_bin[j], bin, terms);
    sum_bin[j] = bin;
  }

 private:
  /// The largest magnitude of row `j` in the thread; NaN if there is one.
  __device__ static float largest_output(const ChunkOutputs& x, int j) {
    float largest = 0.0f;
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      largest = max_nan(largest, max_nan(fabsf(x[n][j]), fabsf(x[n][2 + j])));
    }
    return largest;
  }
};

}  // namespace kvmesh::cuda
