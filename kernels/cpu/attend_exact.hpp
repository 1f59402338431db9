// One task of attention on the CPU in reproducible mode: one split of one work block into rows that
// can be merged in any order.
#pragma once

#include <numeric>

#include "core/numbers/exact_rows.hpp"
#include "kernels/cpu/attend_task.hpp"

namespace kvmesh::cpu {

/// A chunk's keys are summed in float32, in key order; chunks are summed exactly. So a row's bits
/// depend on its chunks alone. A chunk is part of a page, and a page lies on one rank. With 16
/// keys, 16 products are added per number that goes into the exact sums.
inline constexpr int kChunkKeys = 16;

/// Keys per chunk; chunks begin at multiples of this position. All page sizes that are multiples of
/// 16 have the same chunks, so they give the same bits. Tiles hold whole chunks.
constexpr int chunk_keys(int page_size) { return std::gcd(page_size, kChunkKeys); }
static_assert(kTileKeys % kChunkKeys == 0);

/// The inputs and outputs that the tasks of one attend share.
struct ExactInputs {
  AttendInputs attend{};  // its outputs are not used
  ExactRows out{};        // [tokens, q_heads]
  ExactRows workspace{};  // [workspace_rows]
};

/// Computes one task into `out`, or into the workspace where its block has several splits.
void attend_exact_task(const ExactInputs& inputs, const WorkTask& task, AttendScratch& scratch);

/// Merges the splits of `block`, which has one kv head, from the workspace into `out`.
void merge_exact_splits(const ExactInputs& inputs, const WorkBlock& block);

}  // namespace kvmesh::cpu
