// The attention and the combine of a reproducible step.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "comm/combine/exact/exact_combine.hpp"
#include "kernels/exact_attention.hpp"
#include "runtime/step/step_batch.hpp"

namespace kvmesh {

/// The combine of a reproducible step, and this rank's rows of exact sums in host memory. Planned
/// once per step, run once per layer.
class ExactRowsCombine {
 public:
  /// `rows` is over the kv axis.
  explicit ExactRowsCombine(std::shared_ptr<RowExchange> rows) : combine_(std::move(rows)) {}

  /// @throws InvalidArgument for a sequence that is too long.
  static void check(std::span<const SequenceSize> batch, int page_size);

  /// `tokens` is the number of tokens that tensors have room for. Makes rows past those of the
  /// batch the rows of no key.
  void plan(const CombineShape& shape, const CombineOptions& options, const StepBatch& batch);
  /// [tokens, q_heads] of the plan, for attention to fill.
  ExactRows rows() { return {memory_.data(), v_dim_}; }
  /// REQUIRES: a plan, as for all that follows.
  void check_run(const CombineOutput& output, DeviceKind device) const {
    combine_.check_run(output, device);
  }
  /// Combines the rows, with `sinks` [q_heads] unless that is null.
  /// Collective over the kv axis.
  void run(const CombineOutput& output, const float* sinks) { combine_.run(rows(), output, sinks); }
  std::int64_t held_bytes() const {
    return static_cast<std::int64_t>(memory_.size() + combine_.workspace_bytes());
  }

 private:
  ExactCombine combine_;
  int v_dim_ = 0;
  std::vector<std::byte> memory_;  // grows, never shrinks
};

/// A reproducible step on the CPU. Planned once per step, run once per layer: attend, then combine.
class ExactStep {
 public:
  /// `rows` is over the kv axis.
  explicit ExactStep(std::shared_ptr<RowExchange> rows) : combine_(std::move(rows)) {}

  /// `tokens` is the number of tokens that tensors have room for.
  void plan(const AttentionShape& shape, const AttentionOptions& attention,
            const CombineOptions& combine, const StepBatch& batch, std::int64_t tokens);
  /// REQUIRES: a plan, as for all that follows.
  void attend(const ConstTensorView& q, const ConstKvPool& pool, ThreadPool& threads) {
    attention_->attend(q, pool, combine_.rows(), threads);
  }
  void check_combine(const CombineOutput& output) const {
    combine_.check_run(output, DeviceKind::kCpu);
  }
  /// Combines what the last attend has computed, with `sinks` [q_heads] unless that is null.
  /// Collective over the kv axis.
  void combine(const CombineOutput& output, const float* sinks) { combine_.run(output, sinks); }

  TileCounts tiles() const { return attention_->tiles(); }
  std::int64_t workspace_bytes() const;

 private:
  std::optional<ExactAttention> attention_;
  ExactRowsCombine combine_;
};

}  // namespace kvmesh
