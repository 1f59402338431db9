// One task of attend_partial on the CPU: one split of one work block, start to end.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cpu/mods/mod_evaluator.hpp"
#include "kernels/cpu/plan/work_blocks.hpp"

namespace kvmesh::cpu {

/// Keys per tile, equal to the keys that the mod evaluator takes at a time. With 64 keys the scores
/// of a row are four 512-bit vectors, and one page of 16 tokens is a quarter of a tile.
inline constexpr int kTileKeys = kModTile;

/// An element of float8 pages.
struct Float8 {
  std::uint8_t bits;
};

/// Memory that one thread reuses from task to task.
struct AttendScratch {
  AttendScratch(const AttentionShape& shape, int max_rows, const AttentionOptions& options);

  std::int64_t size_bytes() const;

  std::vector<float> q;                // [padded max_rows, padded k_dim], or transposed; scaled
  std::vector<std::uint32_t> q_pairs;  // [k_dim / 2, padded max_rows]: see load_query_pairs
  std::vector<float> scores;           // [padded max_rows, kTileKeys]
  std::vector<float> o;                // [max_rows, padded v_dim], not yet normalised
  std::vector<float> max, sum;         // [max_rows]
  std::vector<float> k_rows;  // [kTileKeys, padded k_dim]: keys of odd dims, float8 or many rows
  std::vector<float> v_rows;  // [kTileKeys, padded v_dim]
  std::unique_ptr<ModEvaluator> score_mod;  // null: identity
  std::unique_ptr<ModEvaluator> mask_mod;   // null: everything is visible
};

/// The inputs and outputs that the tasks of one attend share.
struct AttendInputs {
  const WorkBlocks* work = nullptr;
  const std::int64_t* kv_lens = nullptr;  // [batch]
  AttentionShape shape;
  float scale = 1.0f;
  int first_head = 0;
  /// True if the scores of many rows may be summed in another order than those of few.
  bool orders_by_rows = true;
  ConstTensorView q;               // [tokens, q_heads, k_dim]
  ConstKvPool pool;                // [pages, kv_heads, page_size, dim]
  Partial out;                     // [tokens, q_heads, v_dim], [tokens, q_heads]
  const float* sinks = nullptr;    // [q_heads]; null: none
  float* workspace_o = nullptr;    // [workspace_rows, v_dim]
  float* workspace_lse = nullptr;  // [workspace_rows]
};

/// Computes one task into `out`, or into the workspace where its block has several splits.
void attend_task(const AttendInputs& inputs, const WorkTask& task, AttendScratch& scratch);

/// Merges the splits of `block`, which has one kv head, from the workspace into `out`, in order.
void merge_splits(const AttendInputs& inputs, const WorkBlock& block);

/// Rounds a dim up to whole vectors of any target.
inline constexpr std::size_t padded(int dim) {
  return (static_cast<std::size_t>(dim) + 15) / 16 * 16;
}

}  // namespace kvmesh::cpu
