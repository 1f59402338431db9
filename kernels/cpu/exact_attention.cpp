#include "kernels/cpu/exact_attention.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/attend_checks.hpp"

namespace kvmesh {
namespace {

/// A row's bits do not depend on other sequences, so it shares no pages with them.
AttentionOptions without_sharing(AttentionOptions options) {
  options.shares_prefixes = false;
  return options;
}

}  // namespace

ExactAttention::ExactAttention(const AttentionShape& shape, const AttentionBatch& batch,
                               const AttentionOptions& options)
    : shape_(shape),
      options_(options),
      kv_lens_(batch.kv_lens),
      work_(make_work_blocks(shape, batch, without_sharing(options))),
      workspace_(
          static_cast<std::size_t>(work_.workspace_rows * ExactRows::row_bytes(shape.v_dim))) {
  check_scale(options.scale);
  require(options.first_head >= 0, "attention: the first head is {}, must not be negative",
          options.first_head);
  options_.block_mask = nullptr;  // work_ has its pages now
  for (const std::int64_t length : kv_lens_) {
    require(length <= longest_exact_sequence(shape.page_size),
            "attention: sums over {} tokens are not reproducible, at most {} are", length,
            longest_exact_sequence(shape.page_size));
  }
  for (const LocalPage& page : batch.pages) max_page_ = std::max(max_page_, page.page);
  max_rows_ = static_cast<int>(work_.most_queries) * work_.group;
}

void ExactAttention::attend(const ConstTensorView& q, const ConstKvPool& pool, const ExactRows& out,
                            ThreadPool& threads) {
  const auto tokens = static_cast<std::int64_t>(work_.positions.size());
  check_attend_inputs(shape_, tokens, max_page_, q, pool);
  while (static_cast<int>(scratch_.size()) < threads.threads()) {
    scratch_.push_back(std::make_unique<cpu::AttendScratch>(shape_, max_rows_, options_));
  }
  const cpu::ExactInputs inputs{.attend = {.work = &work_,
                                           .kv_lens = kv_lens_.data(),
                                           .shape = shape_,
                                           .scale = options_.scale.value_or(
                                               1.0f / std::sqrt(static_cast<float>(shape_.k_dim))),
                                           .first_head = options_.first_head,
                                           .orders_by_rows = false,
                                           .q = q,
                                           .pool = pool,
                                           .out = {}},
                                .out = out,
                                .workspace = ExactRows(workspace_.data(), shape_.v_dim)};
  threads.for_each(work_.tasks, [&](std::int64_t i, int thread) {
    cpu::attend_exact_task(inputs, work_.task(i), *scratch_[static_cast<std::size_t>(thread)]);
  });
  threads.for_each(work_.merges, [&](std::int64_t i, int) {
    cpu::merge_exact_splits(inputs, work_.merged_block(i));
  });
}

}  // namespace kvmesh
