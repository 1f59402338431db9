// Computes this rank's work from a batch of sequences.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "comm/combine/plan_digest.hpp"
#include "kernels/sequence_size.hpp"
#include "kvmesh/kv_cache.hpp"
#include "runtime/step/local_pages.hpp"

namespace kvmesh {

/// One sequence of a step, as one rank sees it.
struct SequenceStep {
  SequenceId sequence;
  SequenceSize size{};
  LocalSequence* pages = nullptr;  ///< the new tokens' pages included
  std::uint64_t version = 0;       ///< PageAllocator::version after the append
  /// Whether this rank counts the sinks of the sequence's rows. The first rank that has pages of it
  /// does; if none has, rank 0.
  bool counts_sinks = true;
  /// The page rank of its first page: Scatter::kOwner gives its rows to the holder. Empty if that
  /// page is not in the tables: then the first page rank that has pages.
  std::optional<PageRank> owner{};
};

/// A step, as one rank sees it. Valid until the allocator's next change.
struct StepBatch {
  std::vector<SequenceStep> sequences;
  std::vector<std::int64_t> q_positions;  ///< [query_tokens]; empty: the newest of each sequence
  std::int64_t query_tokens = 0;
  std::int64_t append_tokens = 0;

  /// Removes all sequences and keeps their memory. add() appends one and counts its tokens.
  void restart(std::span<const std::int64_t> positions);
  void add(const SequenceStep& sequence);
  /// Returns which ranks hold keys of which query. Computes it at the first call.
  const Participation& participation() const;
  /// Returns the bytes of the lists. The pages belong to the cache.
  std::int64_t size_bytes() const;

  const Membership* members = nullptr;  ///< the mesh's, of the kv ranks
  PlanDigest digest{};                  ///< sent along by combines that compare plans
  mutable std::optional<Participation> participants{};  // empty: not computed yet
};

/// Positions are int32. Kernels number the slots of whole pages and of whole tiles of keys, so the
/// end of a sequence's last page stays this far below 2^31.
inline constexpr std::int64_t kMaxLength = (std::int64_t{1} << 31) - 4096;

/// Returns the number of queries of one sequence.
std::int64_t queries_of(const BatchEntry& entry);

/// The options that a batch must match: see PlanOptions.
struct StepRules {
  std::span<const std::int64_t> q_positions{};
  const BlockMask* block_mask = nullptr;
  std::optional<StepLimits> limits{};
};

/// Checks a batch before the allocator appends it. Returns the sizes of its sequences.
/// @throws InvalidArgument, UnknownSequence.
std::vector<SequenceSize> check_step(const PageAllocator& allocator, const CacheOptions& cache,
                                     std::span<const BatchEntry> batch, const StepRules& rules);

/// The parts of check_step that need no allocator. `q_heads` is that of the whole model.
void check_positions(std::span<const std::int64_t> q_positions, std::int64_t queries);
void check_block_mask(int page_size, int q_heads, std::span<const SequenceSize> batch,
                      const BlockMask& mask);
void check_limits(const StepLimits& limits, std::span<const BatchEntry> batch);

/// Fills `step` but for its `members`, and reuses its memory. `sizes` are what check_step has
/// returned. REQUIRES: the allocator has appended the batch's tokens.
void make_step_batch(const PageAllocator& allocator, LocalPages& pages,
                     std::span<const BatchEntry> batch, std::span<const SequenceSize> sizes,
                     std::span<const std::int64_t> q_positions, StepBatch& step);

/// Converts the batch for kernels that copy its pages.
AttentionBatch attention_batch(const StepBatch& step);
/// Fills `slots` with the slots of the appended tokens; tokens of other ranks have a negative page.
void set_token_slots(const StepBatch& step, int page_size, std::vector<TokenSlot>& slots);
/// Returns the pages of the batch that this rank visits under an explicit block mask.
LocalBlockMask local_block_mask(const StepBatch& step, const BlockMask& mask);

}  // namespace kvmesh
