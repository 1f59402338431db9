// The host kernels' batch for the device: its pages in lists there, and its sequences.
#pragma once

#include <vector>

#include "kernels/cuda/attend/cuda_attend.hpp"

namespace kvmesh::test {

class PlannedBatch {
 public:
  /// Sequence s has the list `s`.
  PlannedBatch(const AttentionBatch& batch, cuda::PageLists& pages) : batch_(batch) {
    for (std::size_t s = 0; s < batch.kv_lens.size(); ++s) {
      const auto begin = static_cast<std::size_t>(batch.page_indptr[s]);
      const auto end = static_cast<std::size_t>(batch.page_indptr[s + 1]);
      pages.change(s, 0, std::span(batch.pages).subspan(begin, end - begin));
      sequences_.push_back({.queries = batch.q_indptr[s + 1] - batch.q_indptr[s],
                            .kv_len = batch.kv_lens[s],
                            .pages = std::span(batch_.pages).subspan(begin, end - begin),
                            .counts_sinks = batch.counts_sinks.empty() || batch.counts_sinks[s],
                            .list = s});
    }
  }
  PlannedBatch(const PlannedBatch&) = delete;
  PlannedBatch& operator=(const PlannedBatch&) = delete;

  std::vector<SequenceSize> sizes() const {
    std::vector<SequenceSize> sizes;
    for (const AttendSequence& it : sequences_) {
      sizes.push_back({.queries = it.queries, .length = it.kv_len});
    }
    return sizes;
  }
  cuda::StepView step() const { return {sequences_, batch_.q_positions}; }
  /// With the prefixes that `plan` may share, however short.
  cuda::StepView step_of(const cuda::CudaAttend& plan) {
    const SharedPrefixRules rules = plan.shared_prefix_rules().with(1);
    prefixes_ = find_shared_prefixes(sequences_, rules);
    return {
        sequences_, batch_.q_positions, false, {sequences_, batch_.q_positions, prefixes_, rules}};
  }

  /// Rows of the largest sequence that is no prefill.
  static std::int64_t short_rows(const AttentionBatch& batch, int group) {
    std::int64_t most = 1;
    for (std::size_t s = 0; s < batch.kv_lens.size(); ++s) {
      const std::int64_t rows = (batch.q_indptr[s + 1] - batch.q_indptr[s]) * group;
      if (rows <= cuda::kShortRows) most = std::max(most, rows);
    }
    return most;
  }

 private:
  AttentionBatch batch_;
  std::vector<AttendSequence> sequences_;
  std::vector<SharedPrefix> prefixes_;
};

}  // namespace kvmesh::test
