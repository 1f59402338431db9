// Attention on the CPU whose bits depend on a row's keys alone: not on the ranks and pages that
// hold them, nor on splits, threads, or the rest of the batch. On GPUs it is a family of kernels,
// kernels/cuda/attend/exact.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/numbers/exact_rows.hpp"
#include "kernels/cpu/attend_exact.hpp"
#include "kvmesh/attention.hpp"

namespace kvmesh {

/// AttentionPlan for reproducible mode: planned once per step, run once per layer.
class ExactAttention {
 public:
  /// @throws InvalidArgument as AttentionPlan does.
  ExactAttention(const AttentionShape& shape, const AttentionBatch& batch,
                 const AttentionOptions& options);

  /// Computes attention of `q` [tokens, q_heads, k_dim] over this rank's pages into `out` [tokens,
  /// q_heads]. The bits are equal for one instruction set: the sums over all keys that a row sees,
  /// added in any order, finish to an output of equal bits.
  /// @throws InvalidArgument before anything is written.
  void attend(const ConstTensorView& q, const ConstKvPool& pool, const ExactRows& out,
              ThreadPool& threads);

  TileCounts tiles() const { return work_.tiles; }
  std::int64_t workspace_bytes() const { return static_cast<std::int64_t>(workspace_.size()); }

 private:
  AttentionShape shape_;
  AttentionOptions options_;
  std::vector<std::int64_t> kv_lens_;
  WorkBlocks work_;
  std::vector<std::byte> workspace_;
  std::vector<std::unique_ptr<cpu::AttendScratch>> scratch_;  // one per thread
  std::int32_t max_page_ = -1;
  int max_rows_ = 0;
};

}  // namespace kvmesh
