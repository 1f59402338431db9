#include "runtime/step/exact/exact_step.hpp"

#include <algorithm>
#include <optional>

#include "core/check.hpp"

namespace kvmesh {

void ExactStep::check(std::span<const SequenceSize> batch, int page_size) {
  const std::int64_t longest = longest_exact_sequence(page_size);
  for (const SequenceSize& size : batch) {
    require(size.length <= longest,
            "plan: reproducible sums over {} tokens, with pages of {} at most {}", size.length,
            page_size, longest);
  }
}

void ExactStep::plan(const AttentionShape& shape, const AttentionOptions& attention,
                     const CombineOptions& combine, const ExactBatch& batch, std::int64_t tokens) {
  attention_.emplace(shape, batch.attention, attention);
  v_dim_ = shape.v_dim;
  const std::int64_t count = tokens * shape.q_heads;
  const std::int64_t bytes = count * ExactRows::row_bytes(v_dim_);
  if (std::ssize(memory_) < bytes) memory_.resize(static_cast<std::size_t>(bytes));
  // With limits the combine also finishes rows that the batch does not have.
  for (std::int64_t row = batch.query_tokens * shape.q_heads; row < count; ++row) {
    clear_row(rows().row(row), rows().dim());
  }
  CombineOptions options = combine;
  options.participation = batch.participation;
  std::optional<Participation> padded;
  if (batch.participation != nullptr && tokens != batch.query_tokens) {
    options.participation = &padded.emplace(batch.participation->padded(tokens));
  }
  combine_.plan({tokens, shape.q_heads, shape.v_dim}, options, batch.digest);
}

void ExactStep::attend(const ConstTensorView& q, const ConstKvPool& pool, ThreadPool& threads) {
  attention_->attend(q, pool, rows(), threads);
}

std::int64_t ExactStep::workspace_bytes() const {
  const std::int64_t attention = attention_ ? attention_->workspace_bytes() : 0;
  return attention + static_cast<std::int64_t>(memory_.size() + combine_.workspace_bytes());
}

}  // namespace kvmesh
