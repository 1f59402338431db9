// Which rows of which merge a thread block has.
#pragma once

namespace kvmesh::cuda {

/// Part `part` of `parts` of a merge. Thread blocks without work have merge -1.
struct MergeShare {
  int merge = -1;
  int part = 0;
  int parts = 1;
};

/// Spreads a grid over the merges of a step, whose number only the device knows. First parts come
/// first: where a merge has fewer rows than parts, the thread blocks without rows are the last.
/// REQUIRES: a thread block for each merge at the least.
__device__ inline MergeShare merge_share(int merges) {
  if (merges == 0) return {};
  const int parts = static_cast<int>(gridDim.x) / merges;
  const int part = static_cast<int>(blockIdx.x) / merges;
  if (part >= parts) return {};
  return {static_cast<int>(blockIdx.x) % merges, part, parts};
}

}  // namespace kvmesh::cuda
