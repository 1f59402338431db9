// Which pages the queries of each list see: none, some or all of their keys. Evaluates the mask for
// every pair of a query and a key: 32 threads an item where there are many pairs, else one.
//
// Constants of the kernel (namespace kvmesh): kLanes, kPageSize, kGroup, kPerHead (lists are of one
// kv head), kHasMaskMod and the mods of emit_cuda.hpp.
#pragma once

#include "kernels/cuda/plan/items.cuh"

namespace kvmesh::cuda {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

struct Seen {
  bool visible = false;
  bool hidden = false;
};

__device__ inline void look(const ClassifyParams& p, const PlanList& list,
                            const PlanSequence& sequence, int t, int kv, Seen& seen) {
  const int token = list.first_token + t;
  const int q = p.items.q_positions != nullptr
                    ? p.items.q_positions[token]
                    : sequence.kv_len - sequence.queries + token - sequence.first_token;
  const int head = p.items.first_head + (kPerHead ? list.kv_head * kGroup : 0);
  for (int g = 0; g < (kPerHead ? kGroup : 1); ++g) {
    const bool visible = kvmesh_mask_mod(list.sequence, head + g, q, kv, p.mods);
    seen.visible |= visible;
    seen.hidden |= !visible;
  }
}

__device__ inline TileClass class_of(const ClassifyParams& p, int item, int lane) {
  const PlanList& list = p.items.lists[list_of(p.items, item)];
  const PlanSequence& sequence = p.items.sequences[list.sequence];
  const int logical = page_of(p.items, list, item).logical;
  const int first = logical * kPageSize;
  const int keys = min(kPageSize, sequence.kv_len - first);
  Seen seen;
  for (int pair = lane; pair < list.tokens * keys; pair += kLanes) {
    look(p, list, sequence, pair / keys, first + pair % keys, seen);
    if (seen.visible && seen.hidden) break;
  }
  if constexpr (kLanes > 1) {
    seen.visible = __any_sync(kAllLanes, seen.visible);
    seen.hidden = __any_sync(kAllLanes, seen.hidden);
  }
  return !seen.visible ? TileClass::kEmpty : seen.hidden ? TileClass::kPartial : TileClass::kFull;
}

}  // namespace kvmesh::cuda

/// Threads: items * kLanes, in blocks that kLanes divides.
extern "C" __global__ void kvmesh_classify(
    const __grid_constant__ kvmesh::cuda::ClassifyParams params) {
  using namespace kvmesh;
  using namespace kvmesh::cuda;
  const long long thread = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int item = static_cast<int>(thread / kLanes);
  const int lane = static_cast<int>(thread % kLanes);
  if (item >= params.items.items) return;
  TileClass tile_class = TileClass::kFull;
  if constexpr (kHasMaskMod) tile_class = class_of(params, item, lane);
  if (lane == 0) params.items.classes[item] = tile_class;
}
