// Rows of a task: their queries, the keys they see, their outputs. Shared by all families.
//
// Constants of the kernel (namespace kvmesh): kGroup, kPageSize, kDimV, kHasScoreMod, kHasMaskMod,
// kHasHeadClasses (a page may have another class for each head of the group), kHeadBlocks (this
// many kv heads of tasks are blocks of one head of the pool), kHasSinks, kHasRowTokens (rows are
// those of several sequences, whose tokens a list names).
// The mods are functions kvmesh_score_mod and kvmesh_mask_mod over `ModBuffers`.
#pragma once

#include "core/pod/row_merge.hpp"
#include "kernels/cuda/attend/common/output.cuh"

namespace kvmesh::cuda {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

/// The head of the pool that a task reads.
__device__ inline int pool_head(const DeviceTask& task) { return task.kv_head / kHeadBlocks; }

struct Row {
  int token;
  int head;      // query head of this rank
  int position;  // logical position of the query
};

/// The query token of row `r`.
__device__ inline int token_of(const AttendParams& p, const DeviceTask& task, int r) {
  const int place = task.first_token + r / kGroup;
  if constexpr (kHasRowTokens) return p.row_tokens[place];
  return place;
}

__device__ inline Row row_of(const AttendParams& p, const DeviceTask& task, int r) {
  Row row;
  row.token = token_of(p, task, r);
  row.head = task.kv_head * kGroup + r % kGroup;
  row.position = p.positions[row.token];
  return row;
}

struct Key {
  int number;    // index in the task
  int position;  // logical
  PageVisit visit;
};

__device__ inline Key key_of(const PageVisit& visit, int number) {
  const int position = static_cast<int>(visit.logical) * kPageSize + number % kPageSize;
  return {number, position, visit};
}

/// True if the row sees the key. Evaluates the mask also for pages that need none: that costs less
/// than a branch per element.
__device__ inline bool sees(const AttendParams& p, const DeviceTask& task, const Row& row,
                            const Key& key) {
  bool everything = !key.visit.masked;
  bool nothing = false;
  if constexpr (kHasHeadClasses) {
    if (key.visit.mixed) {
      const int visit = task.first_visit + key.number / kPageSize;
      const TileClass tile_class = p.head_classes[visit * kGroup + row.head % kGroup];
      everything = tile_class == TileClass::kFull;
      nothing = tile_class == TileClass::kEmpty;
    }
  }
  bool seen = true;
  if constexpr (kHasMaskMod) {
    seen =
        kvmesh_mask_mod(task.sequence, p.first_head + row.head, row.position, key.position, p.mods);
  }
  return (everything | seen) & !nothing;
}

/// Returns the score after the score mod, from what `Math` takes for a scaled score and for the
/// key's position.
template <class Math, class Score, class Place>
__device__ __forceinline__ float modified_by(const AttendParams& p, const DeviceTask& task,
                                             const Row& row, Place key, Score score) {
  return kvmesh_score_mod<Math>(score, task.sequence, p.first_head + row.head, row.position, key,
                                p.mods);
}

/// Returns the score after the scale and the score mod.
__device__ inline float modified(const AttendParams& p, const DeviceTask& task, const Row& row,
                                 const Key& key, float score) {
  score *= p.scale;
  if constexpr (kHasScoreMod) {
    score = modified_by<mod_ops::RoundedMath>(p, task, row, key.position, score);
  }
  return score;
}

/// Returns the place of row `r` of the task: in the workspace if its block was split or is shared,
/// else in the output.
__device__ inline OutputRow output_row(const AttendParams& p, const DeviceTask& task, int r) {
  if (task.workspace_row >= 0) {
    return {p.workspace_o, Dtype::kFloat32,
            static_cast<std::int64_t>(task.workspace_row + r) * kDimV};
  }
  return output_row(p.out, task.first_token + r / kGroup, task.kv_head * kGroup + r % kGroup);
}

__device__ inline void put_lse(const AttendParams& p, const DeviceTask& task, int r, float lse) {
  if (task.workspace_row >= 0) {
    p.workspace_lse[task.workspace_row + r] = lse;
  } else {
    put_lse(p.out, task.first_token + r / kGroup, task.kv_head * kGroup + r % kGroup, lse);
  }
}

/// The end of a row: its output is the weighted sum of values times `factor`.
struct RowEnd {
  float factor;
  float lse;
};

/// Ends row `r` of the task, from the sum of its weights and its LSE over the task's keys. Counts
/// the row's sink, unless its block was split: then the merge counts it.
__device__ inline RowEnd row_end(const AttendParams& p, const DeviceTask& task, int r, float sum,
                                 float lse) {
  RowEnd end{sum == 0.0f ? 0.0f : 1.0f / sum, lse};
  if constexpr (kHasSinks) {
    if (task.workspace_row < 0 && task.counts_sinks) {
      const float sink = p.sinks[task.kv_head * kGroup + r % kGroup];
      end.lse = lse_with_sink(lse, sink);
      end.factor *= merge_weight(lse, end.lse, [](float x) { return expf(x); });
    }
  }
  return end;
}

}  // namespace kvmesh::cuda
