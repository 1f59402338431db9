#include "kernels/cpu/attend.hpp"

#include <algorithm>
#include <cmath>

namespace kvmesh::cpu {

Attend::Attend(const AttentionShape& shape, const AttentionOptions& options)
    : shape_(shape), options_(options), band_(band_of(options.mask.graph())) {
  options_.block_mask = nullptr;
}

AttentionOptions Attend::options_with(const LocalBlockMask* block_mask) const {
  AttentionOptions options = options_;
  options.block_mask = block_mask;
  return options;
}

void Attend::plan(const AttendSteps& batch, const LocalBlockMask* block_mask) {
  kv_lens_.resize(batch.sequences.size());
  std::ranges::transform(batch.sequences, kv_lens_.begin(), &AttendSequence::kv_len);
  plan_work_blocks(shape_, batch, options_with(block_mask), work_, band_);
  make_room();
}

void Attend::plan(const AttentionBatch& batch, const LocalBlockMask* block_mask) {
  kv_lens_ = batch.kv_lens;
  work_ = make_work_blocks(shape_, batch, options_with(block_mask));
  make_room();
}

void Attend::make_room() {
  const auto rows = static_cast<std::size_t>(work_.workspace_rows);
  const std::size_t floats = rows * static_cast<std::size_t>(shape_.v_dim);
  if (workspace_o_.size() < floats) workspace_o_.resize(floats);
  if (workspace_lse_.size() < rows) workspace_lse_.resize(rows);
  const int group = shape_.q_heads / shape_.kv_heads;
  if (work_.most_queries * group <= scratch_rows_) return;
  scratch_rows_ = static_cast<int>(work_.most_queries) * group;
  scratch_.clear();
}

void Attend::run(const ConstTensorView& q, const ConstKvPool& pool, const Partial& out,
                 ThreadPool& threads, const ConstTensorView& sinks) {
  while (static_cast<int>(scratch_.size()) < threads.threads()) {
    scratch_.push_back(std::make_unique<AttendScratch>(shape_, scratch_rows_, options_));
  }
  const AttendInputs inputs{
      .work = &work_,
      .kv_lens = kv_lens_.data(),
      .shape = shape_,
      .scale = options_.scale.value_or(1.0f / std::sqrt(static_cast<float>(shape_.k_dim))),
      .first_head = options_.first_head,
      .q = q,
      .pool = pool,
      .out = out,
      .sinks = static_cast<const float*>(sinks.data),
      .workspace_o = workspace_o_.data(),
      .workspace_lse = workspace_lse_.data()};
  threads.for_each(work_.tasks, [&](std::int64_t i, int thread) {
    attend_task(inputs, work_.task(i), *scratch_[static_cast<std::size_t>(thread)]);
  });
  threads.for_each(work_.merges,
                   [&](std::int64_t i, int) { merge_splits(inputs, work_.merged_block(i)); });
}

std::int64_t Attend::workspace_bytes() const {
  std::int64_t bytes = work_.size_bytes();
  bytes += static_cast<std::int64_t>((workspace_o_.size() + workspace_lse_.size()) * sizeof(float));
  for (const auto& scratch : scratch_) bytes += scratch->size_bytes();
  return bytes;
}

}  // namespace kvmesh::cpu
