// How a plan's items are found. For nvcc and for NVRTC.
#pragma once

#include "kernels/cuda/plan/params.hpp"

namespace kvmesh::cuda {

/// The list that an item belongs to: the last that begins at or before it.
__device__ inline int list_of(const PlanItems& p, int item) {
  int low = 0;
  int high = p.list_count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (p.lists[middle].first_item <= item) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

__device__ inline const LocalPage& page_of(const PlanItems& p, const PlanList& list, int item) {
  return p.pages[p.sequences[list.sequence].first_page + (item - list.first_item)];
}

}  // namespace kvmesh::cuda
