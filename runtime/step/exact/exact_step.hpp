// The attention and the combine of a reproducible step on the CPU.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "comm/combine/exact/exact_combine.hpp"
#include "kernels/cpu/exact_attention.hpp"
#include "kernels/sequence_size.hpp"

namespace kvmesh {

/// The part of a step's batch that its attention and its combine read.
struct ExactBatch {
  AttentionBatch attention;
  std::int64_t query_tokens = 0;
  /// The ranks that take part in the batch's rows. Null: every rank takes part in every row.
  const Participation* participation = nullptr;
  const PlanDigest& digest;
};

/// Planned once per step, run once per layer: attend, then combine.
class ExactStep {
 public:
  /// `rows` is over the kv axis.
  explicit ExactStep(std::shared_ptr<RowExchange> rows) : combine_(std::move(rows)) {}

  /// @throws InvalidArgument for a sequence that is too long.
  static void check(std::span<const SequenceSize> batch, int page_size);

  /// `tokens` is the number of tokens that tensors have room for. For those that the batch lacks,
  /// no rank has keys.
  void plan(const AttentionShape& shape, const AttentionOptions& attention,
            const CombineOptions& combine, const ExactBatch& batch, std::int64_t tokens);
  /// REQUIRES: a plan, as for all that follows.
  void attend(const ConstTensorView& q, const ConstKvPool& pool, ThreadPool& threads);
  void check_combine(const CombineOutput& output) const { combine_.check_run(output); }
  /// Combines what the last attend has computed, with `sinks` [q_heads] unless that is null.
  /// Collective over the kv axis.
  void combine(const CombineOutput& output, const float* sinks) {
    combine_.run(rows(), output, sinks);
  }

  TileCounts tiles() const { return attention_->tiles(); }
  std::int64_t workspace_bytes() const;

 private:
  ExactRows rows() { return {memory_.data(), v_dim_}; }

  std::optional<ExactAttention> attention_;
  ExactCombine combine_;
  int v_dim_ = 0;
  std::vector<std::byte> memory_;  // [tokens, q_heads] exact rows; grows, never shrinks
};

}  // namespace kvmesh
