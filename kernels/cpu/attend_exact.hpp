// One task of attention on the CPU in reproducible mode: one split of one work block into rows that
// can be merged in any order.
#pragma once

#include "core/numbers/exact_rows.hpp"
#include "kernels/cpu/attend_task.hpp"
#include "kernels/exact_attention.hpp"

namespace kvmesh::cpu {

static_assert(kTileKeys % kChunkKeys == 0, "tiles hold whole chunks");

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
