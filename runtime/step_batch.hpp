// From a batch of sequences to what this rank has to do for it.
#pragma once

#include <span>
#include <vector>

#include "kvmesh/kv_cache.hpp"

namespace kvmesh {

/// A step, seen from one rank.
struct StepBatch {
  AttentionBatch attention;
  std::vector<TokenSlot> slots;  ///< [appended tokens]; those of other ranks are negative
  Participation participation{0, 1};
};

/// Everything about `batch` and `options` that can be wrong is found here, before the allocator is
/// touched. @throws InvalidArgument, UnknownSequence.
void check_step(const PageAllocator& allocator, const CacheOptions& cache,
                std::span<const BatchEntry> batch, const PlanOptions& options);

/// For a batch whose tokens the allocator has appended already.
StepBatch make_step_batch(const PageAllocator& allocator, Rank me,
                          std::span<const BatchEntry> batch, const PlanOptions& options);

/// The pages of the batch that this rank visits under an explicit block mask.
LocalBlockMask local_block_mask(const PageAllocator& allocator, Rank me,
                                std::span<const BatchEntry> batch, const BlockMask& mask);

}  // namespace kvmesh
