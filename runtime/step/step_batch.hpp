// From a batch of sequences to what this rank has to do for it.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "kvmesh/kv_cache.hpp"
#include "runtime/step/local_pages.hpp"

namespace kvmesh {

/// One sequence of a step.
struct SequenceStep {
  SequenceId sequence;
  LocalSequence* pages = nullptr;   ///< with those of the step's new tokens
  std::span<const PageId> table{};  ///< all ranks' pages with keys
  std::int64_t queries = 0;
  std::int64_t length = 0;  ///< with the appended tokens
  std::int64_t appended = 0;
  std::uint64_t version = 0;  ///< what the allocator says of it after the append
};

/// One sequence of a step, as far as all ranks see it alike before the allocator has appended.
struct SequenceSize {
  std::int64_t queries = 0;
  std::int64_t length = 0;  ///< with the tokens to append
  std::int64_t appended = 0;
};

/// A step, seen from one rank. Valid until the allocator's next change.
struct StepBatch {
  std::vector<SequenceStep> sequences;
  std::vector<std::int64_t> q_positions;  ///< [query_tokens]; empty: the newest of each sequence
  std::int64_t query_tokens = 0;
  std::int64_t append_tokens = 0;
  /// Which ranks hold keys of which query; worked out when it is asked for.
  const Participation& participation() const;

  int ranks = 1;
  mutable std::optional<Participation> participants{};  // empty: not asked for yet
};

/// Queries of one sequence.
std::int64_t queries_of(const BatchEntry& entry);

/// What a batch must go with: see PlanOptions.
struct StepRules {
  std::span<const std::int64_t> q_positions{};
  const BlockMask* block_mask = nullptr;
  std::optional<StepLimits> limits{};
};

/// What is wrong with a batch is found here, before the allocator is touched.
/// @throws InvalidArgument, UnknownSequence.
std::vector<SequenceSize> check_step(const PageAllocator& allocator, const CacheOptions& cache,
                                     std::span<const BatchEntry> batch, const StepRules& rules);

/// For a batch whose tokens the allocator has appended already. `step` is used again for its
/// memory.
void make_step_batch(const PageAllocator& allocator, LocalPages& pages,
                     std::span<const BatchEntry> batch, std::span<const std::int64_t> q_positions,
                     StepBatch& step);

/// The batch as the CPU's kernels take it.
AttentionBatch attention_batch(const StepBatch& step);
/// Where the appended tokens go; those of other ranks are negative.
std::vector<TokenSlot> token_slots(const StepBatch& step, int page_size);
/// The pages of the batch that rank `me` visits under an explicit block mask.
LocalBlockMask local_block_mask(const StepBatch& step, const BlockMask& mask, int page_size,
                                Rank me);

}  // namespace kvmesh
