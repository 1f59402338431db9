// The work of one attend: which thread reads which pages for which query rows.
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
#include <span>
#include <vector>

#include "kernels/mods/band.hpp"
#include "kernels/page_visit.hpp"
#include "kernels/shared_blocks.hpp"
#include "kernels/shared_prefixes.hpp"
#include "kernels/tile_class.hpp"
#include "kvmesh/attention.hpp"

namespace kvmesh {

/// Keys of multi-head latent attention have 576 elements (512 + 64); no model in use has wider
/// ones.
inline constexpr int kMaxHeadDim = 576;

/// One sequence of a step, as kernels see it. Its pages are this rank's, in ascending logical
/// order. Its queries are the next of the batch's query tokens, its appended tokens, the last of
/// its length, the next of the batch's new ones.
struct AttendSequence {
  std::int64_t queries = 0;
  std::int64_t kv_len = 0;
  std::span<const LocalPage> pages{};
  bool counts_sinks = true;   ///< this rank counts the sinks of its rows
  std::int64_t appended = 0;  ///< its newest tokens that the step writes: their pages are its own
  std::size_t list = 0;       ///< its pages in the page lists of a device
};

/// A ragged batch in the caller's memory. AttentionBatch without a copy of the pages.
struct AttendSteps {
  std::span<const AttendSequence> sequences{};
  std::span<const std::int64_t> q_positions{};  ///< [tokens]; empty: the newest positions
  std::span<const SharedPrefix> shared{};       ///< found by `rules`
  SharedPrefixRules rules{};
};

/// Pages of a sequence that a block visits one after another, all with the mask or all without. The
/// visits of all blocks are numbered in order.
struct PageRange {
  std::int64_t first_visit = 0;
  const LocalPage* pages = nullptr;
  std::int32_t count = 0;
  bool masked = false;             ///< some row may not see all keys
  std::int32_t head_classes = -1;  ///< of a mixed page: its index in AttendWork::head_classes
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

struct AttendWork {
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

/// @throws InvalidArgument if the batch does not fit the shape, or either is invalid.
void check_attention(const AttentionShape& shape, const AttentionBatch& batch);

/// Fills `work` and reuses its memory. Checks nothing. `band` is that of the mask, if it is known:
/// the mask is then not looked at, unless queries have positions of their own.
/// REQUIRES: a batch that check_attention accepts; its pages stay where they are.
void plan_attend_work(const AttentionShape& shape, const AttendSteps& batch,
                      const AttentionOptions& options, AttendWork& work,
                      const std::optional<MaskBand>& band = {});

/// The same for a batch whose pages are copied.
/// @throws InvalidArgument as check_attention does.
AttendWork make_attend_work(const AttentionShape& shape, const AttentionBatch& batch,
                            const AttentionOptions& options);

}  // namespace kvmesh
