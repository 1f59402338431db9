// Candidates of a plan. For nvcc and for NVRTC.
#pragma once

#include "kernels/cuda/plan/params.hpp"

namespace kvmesh::cuda {

/// Returns the query block of a candidate: the last that begins at or before it.
__device__ inline int query_block_of(const PlanCandidates& p, int candidate) {
  int low = 0;
  int high = p.query_block_count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (p.query_blocks[middle].first_candidate <= candidate) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

__device__ inline const LocalPage& page_of(const PlanCandidates& p, const QueryBlock& query_block,
                                           int candidate) {
  return p.pages[p.sequences[query_block.sequence].first_page +
                 (candidate - query_block.first_candidate)];
}

}  // namespace kvmesh::cuda
