// The work of one attend: which thread reads which pages for which query rows.
//
//   sequence -> work blocks (query tokens x the query heads of one kv head)
//            -> visits (local pages that the mask does not make empty)
//            -> splits (contiguous ranges of visits), one task each
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/page_visit.hpp"
#include "kernels/tile_class.hpp"
#include "kvmesh/attention.hpp"

namespace kvmesh {

/// Multi-head latent attention has 576 (512 + 64); nothing in use is wider.
inline constexpr int kMaxHeadDim = 576;

/// Some query tokens of one sequence, for all query heads that share one kv head: what a device's
/// plan numbers as a query block's work block for each kv head. Row r of the block is token q_begin
/// + r / group, head kv_head * group + r % group.
struct WorkBlock {
  std::int32_t sequence = 0;
  std::int32_t kv_head = 0;
  std::int64_t q_begin = 0;
  std::int64_t q_end = 0;
  std::int64_t visit_begin = 0;
  std::int64_t visit_end = 0;
  std::int32_t splits = 1;
  /// First row of this block's partials in the workspace; used if splits > 1.
  std::int64_t workspace_row = 0;
};

/// What a thread computes at a time. Threads share the work, so a task is two indices; a device's
/// task (cuda::DeviceTask) carries all that its thread block needs in two 16-byte loads.
struct WorkSplit {
  std::int32_t block = 0;
  std::int32_t split = 0;
};

struct AttendWork {
  std::vector<WorkBlock> blocks;
  std::vector<PageVisit> visits;
  std::vector<TileClass> head_classes;  ///< [visits][group], of mixed pages; ends after the last
  std::vector<WorkSplit> tasks;
  std::vector<std::int32_t> merges;     ///< the blocks with more than one split
  std::vector<std::int32_t> positions;  ///< [tokens], logical
  std::int64_t workspace_rows = 0;
  int visits_per_split = 1;
  TileCounts tiles;
};

/// @throws InvalidArgument on a batch or a shape that does not fit together.
void check_attention(const AttentionShape& shape, const AttentionBatch& batch);

/// @throws InvalidArgument as check_attention does.
AttendWork make_attend_work(const AttentionShape& shape, const AttentionBatch& batch,
                            const AttentionOptions& options);

}  // namespace kvmesh
