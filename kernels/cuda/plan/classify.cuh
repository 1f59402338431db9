// Classifies pages: do the queries of a query block see none, some or all of their keys? Evaluates
// the mask for every pair of a query and a key: 32 threads per candidate where there are many
// pairs, else one.
//
// Constants of the kernel (namespace kvmesh): kLanes, kPageSize, kGroup, kPerHead (query blocks are
// of one kv head), kHasMaskMod and the mods of emit_cuda.hpp.
#pragma once

#include "core/cuda/device/warp.cuh"
#include "kernels/cuda/plan/candidates.cuh"

namespace kvmesh::cuda {

struct Seen {
  bool visible = false;
  bool hidden = false;
};

__device__ inline void look(const ClassifyParams& p, const QueryBlock& query_block,
                            const PlanSequence& sequence, int t, int kv, Seen& seen) {
  const int token = query_block.first_token + t;
  const int q = p.candidates.q_positions != nullptr
                    ? p.candidates.q_positions[token]
                    : sequence.kv_len - sequence.queries + token - sequence.first_token;
  const int head = p.candidates.first_head + (kPerHead ? query_block.kv_head * kGroup : 0);
  for (int g = 0; g < (kPerHead ? kGroup : 1); ++g) {
    const bool visible = kvmesh_mask_mod(query_block.sequence, head + g, q, kv, p.mods);
    seen.visible |= visible;
    seen.hidden |= !visible;
  }
}

__device__ inline TileClass class_of(const ClassifyParams& p, int candidate, int lane) {
  const QueryBlock& query_block =
      p.candidates.query_blocks[query_block_of(p.candidates, candidate)];
  if (query_block.sequence >= p.candidates.sequence_count) return TileClass::kFull;  // shared
  const PlanSequence& sequence = p.candidates.sequences[query_block.sequence];
  const int logical = page_of(p.candidates, query_block, candidate).logical;
  const int first = logical * kPageSize;
  const int keys = min(kPageSize, sequence.kv_len - first);
  Seen seen;
  for (int pair = lane; pair < query_block.tokens * keys; pair += kLanes) {
    look(p, query_block, sequence, pair / keys, first + pair % keys, seen);
    if (seen.visible && seen.hidden) break;
  }
  if constexpr (kLanes > 1) {
    seen.visible = __any_sync(kAllLanes, seen.visible);
    seen.hidden = __any_sync(kAllLanes, seen.hidden);
  }
  return !seen.visible ? TileClass::kEmpty : seen.hidden ? TileClass::kPartial : TileClass::kFull;
}

}  // namespace kvmesh::cuda

/// Threads: candidates * kLanes, in blocks that kLanes divides.
extern "C" __global__ void kvmesh_classify(
    const __grid_constant__ kvmesh::cuda::ClassifyParams params) {
  using namespace kvmesh;
  using namespace kvmesh::cuda;
  const long long thread = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int candidate = static_cast<int>(thread / kLanes);
  const int lane = static_cast<int>(thread % kLanes);
  if (candidate >= params.candidates.candidate_count) return;
  TileClass tile_class = TileClass::kFull;
  if constexpr (kHasMaskMod) tile_class = class_of(params, candidate, lane);
  if (lane == 0) params.candidates.classes[candidate] = tile_class;
}
