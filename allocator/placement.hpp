// Chooses the rank of a new page: one interface, three policies.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "allocator/pages/page_pools.hpp"
#include "allocator/sequence_table.hpp"
#include "kvmesh/allocator.hpp"

namespace kvmesh {

/// Takes pages for sequences. Deterministic: a choice depends only on the pools, the sequence and
/// the earlier choices. If the preferred rank is full every policy takes another one, so it
/// succeeds as long as any rank has a free page.
class PlacementPolicy {
 public:
  virtual ~PlacementPolicy() = default;

  /// Allocates the memory that `take` needs to bring the sequence to `pages` pages; changes no
  /// visible state. `take` itself never fails.
  virtual void prepare(Sequence& sequence, std::int64_t pages, int ranks) const;

  /// Takes the sequence's logical pages [first, first + out.size()) into `out`. REQUIRES: the pools
  /// have that many pages, and `prepare` was called.
  virtual void take(SequencePlacement& sequence, std::int64_t first, std::span<PageId> out,
                    PagePools& pools) = 0;
};

/// Returns the policy of `options`.
std::unique_ptr<PlacementPolicy> make_placement(const AllocatorOptions& options);

}  // namespace kvmesh
