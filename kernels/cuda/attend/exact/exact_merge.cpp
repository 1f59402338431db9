#include "kernels/cuda/attend/exact/exact_merge.hpp"

#include <algorithm>

#include "kernels/cuda/attend/exact/exact_family.hpp"

namespace kvmesh::cuda {
namespace {

/// Thread blocks per multiprocessor. Most of them may find no work: only the device knows how many
/// merges there are.
constexpr std::int64_t kBlocks = 4;

}  // namespace

ExactMerge::ExactMerge(KernelStore& kernels, int v_dim)
    : store_(&kernels),
      kernel_(
          kernels.get(exact_merge_program(v_dim, kernels.architecture()), "kvmesh_merge_exact")) {}

void ExactMerge::launch(const ExactMergeParams& params, std::int64_t merges, std::int64_t rows,
                        cudaStream_t stream, bool overlaps_previous) const {
  if (merges == 0 || rows == 0) return;
  const std::int64_t blocks =
      std::clamp<std::int64_t>(kBlocks * store_->multiprocessors() / merges, 1, rows);
  kernel_.launch(
      {.stream = stream,
       .grid = dim3(static_cast<unsigned>(merges), static_cast<unsigned>(blocks)),
       .block = dim3(32 * kExactMergeWarps),
       .overlaps_previous = overlaps_previous && can_overlap_launches(store_->architecture())},
      params);
}

}  // namespace kvmesh::cuda
