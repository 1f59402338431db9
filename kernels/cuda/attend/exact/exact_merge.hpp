// Launches the merge of exact rows.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/attend/exact/exact_params.hpp"
#include "kernels/cuda/common/kernel_store.hpp"

namespace kvmesh::cuda {

class ExactMerge {
 public:
  /// Compiles the kernel, or finds it. REQUIRES: the store outlives it.
  ExactMerge(KernelStore& kernels, int v_dim);

  /// Merges on the stream. There are at most `merges`, of at most `rows` rows each.
  /// `overlaps_previous`: the kernel may start before the one before it on the stream ends.
  void launch(const ExactMergeParams& params, std::int64_t merges, std::int64_t rows,
              cudaStream_t stream, bool overlaps_previous) const;

 private:
  KernelStore* store_;
  jit::Kernel kernel_;
};

}  // namespace kvmesh::cuda
