#include "runtime/step/exact_step.hpp"

#include <algorithm>

#include "core/check.hpp"

namespace kvmesh {

void ExactRowsCombine::check(std::span<const SequenceSize> batch, int page_size) {
  const std::int64_t longest = longest_exact_sequence(page_size);
  for (const SequenceSize& size : batch) {
    require(size.length <= longest,
            "plan: reproducible sums over {} tokens, with pages of {} at most {}", size.length,
            page_size, longest);
  }
}

void ExactRowsCombine::plan(const CombineShape& shape, const CombineOptions& options,
                            const StepBatch& batch) {
  v_dim_ = static_cast<int>(shape.dim);
  const std::int64_t count = shape.tokens * shape.heads;
  const std::int64_t bytes = count * exact_row_bytes(v_dim_);
  if (std::ssize(memory_) < bytes) memory_.resize(static_cast<std::size_t>(bytes));
  // With limits the combine also finishes rows that the batch does not have.
  for (std::int64_t row = batch.query_tokens * shape.heads; row < count; ++row) {
    clear_row(rows().row(row), rows().dim());
  }
  CombineOptions with_mask = options;
  std::optional<Participation> padded;
  if (shape.tokens == batch.query_tokens) {
    with_mask.participation = &batch.participation();
  } else if (options.scatter == Scatter::kOwner) {
    with_mask.participation = &padded.emplace(batch.participation().padded(shape.tokens));
  }
  combine_.plan(shape, with_mask, batch.digest);
}

void ExactStep::plan(const AttentionShape& shape, const AttentionOptions& attention,
                     const CombineOptions& combine, const StepBatch& batch, std::int64_t tokens) {
  attention_.emplace(shape, attention_batch(batch), attention);
  combine_.plan({tokens, shape.q_heads, shape.v_dim}, combine, batch);
}

std::int64_t ExactStep::workspace_bytes() const {
  return (attention_ ? attention_->workspace_bytes() : 0) + combine_.held_bytes();
}

}  // namespace kvmesh
