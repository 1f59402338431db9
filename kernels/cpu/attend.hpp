// attend_partial on the CPU: the work of a step, and the loop over its tasks.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cpu/attend_task.hpp"
#include "kernels/cpu/plan/work_blocks.hpp"

namespace kvmesh::cpu {

/// The plan of a step: made once per step, run once per layer. Each plan reuses the memory of the
/// last. Checks nothing; callers check.
class Attend {
 public:
  /// REQUIRES: `options` has no block mask.
  Attend(const AttentionShape& shape, const AttentionOptions& options);

  /// `block_mask` may be null. REQUIRES: the pages stay where they are while the plan is run; the
  /// rest of `batch` and `block_mask` need not.
  void plan(const AttendSteps& batch, const LocalBlockMask* block_mask);
  /// The same for a batch whose pages are copied.
  void plan(const AttentionBatch& batch, const LocalBlockMask* block_mask);

  /// `sinks` [q_heads] may be empty.
  void run(const ConstTensorView& q, const ConstKvPool& pool, const Partial& out,
           ThreadPool& threads, const ConstTensorView& sinks);

  std::int64_t tokens() const { return static_cast<std::int64_t>(work_.positions.size()); }
  TileCounts tiles() const { return work_.tiles; }
  std::int64_t workspace_bytes() const;

 private:
  AttentionOptions options_with(const LocalBlockMask* block_mask) const;
  void make_room();

  AttentionShape shape_;
  AttentionOptions options_;
  std::optional<MaskBand> band_;  // of the mask
  std::vector<std::int64_t> kv_lens_;
  WorkBlocks work_;
  std::vector<float> workspace_o_;
  std::vector<float> workspace_lse_;
  std::vector<std::unique_ptr<AttendScratch>> scratch_;  // per thread, for `scratch_rows_` rows
  int scratch_rows_ = 0;
};

}  // namespace kvmesh::cpu
