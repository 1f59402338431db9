// Launches the merges of exact rows.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/attend/exact/exact_params.hpp"
#include "kernels/cuda/common/kernel_store.hpp"

namespace kvmesh::cuda {

/// The merge of a rank's splits.
class ExactMerge {
 public:
  /// Compiles the kernels, or finds them. REQUIRES: the store outlives it.
  ExactMerge(KernelStore& kernels, int v_dim);

  /// Merges on the stream, and finishes the rows, or puts them into messages. There are at most
  /// `merges`, of at most `rows` rows each. The kernel may start before the one before it on the
  /// stream ends.
  void launch(const ExactMergeParams& params, std::int64_t merges, std::int64_t rows,
              cudaStream_t stream) const;

 private:
  KernelStore* store_;
  jit::Kernel finishing_;
  jit::Kernel keeping_;
};

/// The merge of several ranks' rows by their owner: it gives the bits that ExactMerge gives on one
/// rank.
class ExactRankMerge {
 public:
  /// Compiles the kernel, or finds it. REQUIRES: the store outlives it.
  ExactRankMerge(KernelStore& kernels, int v_dim);

  /// Merges and finishes this rank's rows on the stream.
  void launch(const ExactCombineParams& params, cudaStream_t stream) const;

 private:
  KernelStore* store_;
  jit::Kernel kernel_;
};

}  // namespace kvmesh::cuda
