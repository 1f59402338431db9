// The work of one attend on the CPU: which thread reads which pages for which query rows.
//
//   sequence -> work blocks (query tokens x the kv heads that read the same pages)
//            -> visits (local pages that the mask does not make empty), in ranges
//            -> splits (contiguous visits), a task for each kv head and split
//
// A prefix of pages that several sequences have in common has work blocks with the rows of all of
// them; the block of such a sequence has its other pages, and is merged with its rows of these.
//
// A mask with few borders, such as causal, gives a block a few ranges, however many pages it
// visits. So the work of a prompt takes memory in proportion to its length.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/attend_steps.hpp"
#include "kernels/mods/band.hpp"
#include "kernels/shared_blocks.hpp"
#include "kernels/tile_class.hpp"

namespace kvmesh {

/// Pages of a sequence that a block visits one after another, all with the mask or all without. The
/// visits of all blocks are numbered in order.
struct PageRange {
  std::int64_t first_visit = 0;
  const LocalPage* pages = nullptr;
  std::int32_t count = 0;
  bool masked = false;             ///< some row may not see all keys
  std::int32_t head_classes = -1;  ///< of a mixed page: its index in WorkBlocks::head_classes
};

/// Some query tokens of one sequence, for some kv heads that read the same pages, each with the
/// query heads that share it. Its rows are counted for each kv head: row r is token q_begin + r /
/// group, head kv_head * group + r % group.
struct WorkBlock {
  std::int32_t sequence = 0;
  std::int32_t kv_head = 0;   ///< the first
  std::int32_t kv_heads = 1;  ///< how many
  std::int32_t splits = 1;    ///< of each kv head
  std::int64_t q_begin = 0;
  std::int64_t q_end = 0;
  std::int64_t visit_begin = 0;
  std::int64_t visit_end = 0;
  std::int32_t range_begin = 0;  ///< the ranges of these visits
  std::int32_t range_end = 0;
  std::int64_t first_task = 0;   ///< its tasks are kv head after kv head, split after split
  std::int64_t first_merge = 0;  ///< its merges are kv head after kv head
  /// First row of this block's partials in the workspace, in the order of tasks; used if
  /// is_merged().
  std::int64_t workspace_row = 0;
  std::int32_t shared_block = -1;  ///< that its rows are merged with; -1: none
  std::int32_t shared_row = 0;     ///< its first of that block's rows
  /// True if this rank counts the sinks of its rows.
  bool counts_sinks = true;
  /// True for a shared prefix: q_begin and q_end are places in SharedBlocks::tokens, `sequence` is
  /// one of them, and all rows go to the workspace.
  bool is_shared = false;

  /// True if its rows go through the workspace.
  bool is_merged() const { return is_shared || shared_block >= 0 || splits > 1; }
  /// The block of kv head `head` alone.
  WorkBlock of_head(std::int32_t head, int group) const {
    WorkBlock one = *this;
    one.kv_head = head;
    one.kv_heads = 1;
    one.first_task += std::int64_t{head - kv_head} * splits;
    one.workspace_row += (head - kv_head) * splits * (q_end - q_begin) * group;
    return one;
  }
};

/// A task, the work of one thread at a time: a split of a block of one kv head.
struct WorkTask {
  WorkBlock block;
  std::int32_t split = 0;
};

/// All blocks of one attend, with their visits and tasks.
struct WorkBlocks {
  std::vector<WorkBlock> blocks;
  std::vector<PageRange> ranges;
  std::vector<TileClass> head_classes;  ///< [mixed pages][group]
  std::int64_t tasks = 0;               ///< of all blocks
  std::int64_t merges = 0;              ///< kv heads of blocks whose rows go to the output merged
  int group = 1;                        ///< query heads per kv head
  std::int64_t most_queries = 0;        ///< of a block
  SharedBlocks shared;
  std::vector<std::int32_t> positions;  ///< [tokens], logical
  std::int64_t workspace_rows = 0;
  int visits_per_split = 1;
  TileCounts tiles;
  std::vector<LocalPage> pages;  ///< a copy of the batch's, if the caller does not keep them

  /// Task number `task` of [0, tasks).
  WorkTask task(std::int64_t task) const;
  /// The block of one kv head whose rows are merge number `merge` of [0, merges).
  WorkBlock merged_block(std::int64_t merge) const;
  /// Bytes of the lists.
  std::int64_t size_bytes() const;
};

/// The prefixes that a CPU's plan of this shape reads once for all of their sequences.
SharedPrefixRules shared_prefix_rules(const AttentionShape& shape);

/// Fills `work` and reuses its memory. Checks nothing. `band` is that of the mask, if it is known:
/// the mask is then not looked at, unless queries have positions of their own.
/// REQUIRES: a batch that check_attention accepts; its pages stay where they are.
void plan_work_blocks(const AttentionShape& shape, const AttendSteps& batch,
                      const AttentionOptions& options, WorkBlocks& work,
                      const std::optional<MaskBand>& band = {});

/// The same for a batch whose pages are copied.
/// @throws InvalidArgument as check_attention does.
WorkBlocks make_work_blocks(const AttentionShape& shape, const AttentionBatch& batch,
                            const AttentionOptions& options);

}  // namespace kvmesh
