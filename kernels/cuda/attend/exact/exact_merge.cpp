#include "kernels/cuda/attend/exact/exact_merge.hpp"

#include <algorithm>

#include "kernels/cuda/attend/exact/exact_family.hpp"

namespace kvmesh::cuda {
ExactMerge::ExactMerge(KernelStore& kernels, int v_dim) : store_(&kernels) {
  const jit::Program program = exact_merge_program(v_dim, kernels.architecture());
  finishing_ = kernels.get(program, "kvmesh_merge_exact");
  keeping_ = kernels.get(program, "kvmesh_merge_exact_rows");
}

void ExactMerge::launch(const ExactMergeParams& params, std::int64_t merges, std::int64_t rows,
                        cudaStream_t stream) const {
  if (merges == 0 || rows == 0) return;
  const std::int64_t blocks = std::clamp<std::int64_t>(
      kExactMergeBlocks * store_->multiprocessors(), merges, merges * rows);
  (params.to.places.ranks == 0 ? finishing_ : keeping_)
      .launch({.stream = stream,
               .grid = dim3(static_cast<unsigned>(blocks)),
               .block = dim3(kExactMergeThreads),
               .overlaps_previous = jit::can_overlap_launches(store_->architecture())},
              params);
}

ExactRankMerge::ExactRankMerge(KernelStore& kernels, int v_dim)
    : store_(&kernels),
      kernel_(kernels.get(exact_merge_program(v_dim, kernels.architecture()),
                          "kvmesh_combine_exact")) {}

void ExactRankMerge::launch(const ExactCombineParams& params, cudaStream_t stream) const {
  const std::int64_t rows = params.places.block(params.places.rank).rows();
  if (rows == 0) return;
  const std::int64_t blocks =
      std::min<std::int64_t>(kExactMergeBlocks * store_->multiprocessors(), rows);
  kernel_.launch({.stream = stream,
                  .grid = dim3(static_cast<unsigned>(blocks)),
                  .block = dim3(kExactMergeThreads),
                  .overlaps_previous = jit::can_overlap_launches(store_->architecture())},
                 params);
}

}  // namespace kvmesh::cuda
