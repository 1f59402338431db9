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

/// A step, as one rank sees it. Valid until the allocator's next change. One thread at a time.
class StepBatch {
 public:
  /// `members` are the mesh's, of the kv ranks. REQUIRES: they outlive it.
  void set_members(const Membership& members);
  /// Removes all sequences and keeps their memory and the members. Positions of queries are
  /// logical; without any they are the newest of each sequence.
  void restart(std::span<const std::int64_t> positions);
  /// Appends a sequence, and counts its tokens.
  void add(const SequenceStep& sequence);
  /// Appends the position of a query.
  void add_position(std::int64_t position) { q_positions_.push_back(position); }
  /// Sets the digest that combines which compare plans send along.
  void set_digest(const PlanDigest& digest) { digest_ = digest; }

  const std::vector<SequenceStep>& sequences() const { return sequences_; }
  std::span<const std::int64_t> q_positions() const { return q_positions_; }  ///< [query_tokens]
  std::int64_t query_tokens() const { return query_tokens_; }
  std::int64_t append_tokens() const { return append_tokens_; }
  const PlanDigest& digest() const { return digest_; }
  /// Returns which ranks hold keys of which query. Computed at the first call after a change: many
  /// steps never need it, and it takes time in proportion to the queries. REQUIRES: members.
  const Participation& participation() const;
  bool has_participation() const { return participation_.has_value(); }
  /// Returns the bytes of the lists. The pages belong to the cache.
  std::int64_t size_bytes() const;

 private:
  std::vector<SequenceStep> sequences_;
  std::vector<std::int64_t> q_positions_;
  std::int64_t query_tokens_ = 0;
  std::int64_t append_tokens_ = 0;
  const Membership* members_ = nullptr;
  PlanDigest digest_{};
  mutable std::optional<Participation> participation_;  // empty: not computed yet
};

/// Returns the page rank of SequenceStep::owner in a step of `entry`, as far as the sequence has
/// its pages already: the first page's; if the step gives that up, the lowest one of those that it
/// keeps. `window` is the group's; 0: none. Empty if there is none.
std::optional<PageRank> owner_of(const PageAllocator& allocator, const BatchEntry& entry,
                                 std::int64_t window);

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
