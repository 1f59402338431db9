// Which rank a new page goes to: one interface, three policies.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "allocator/page_pools.hpp"
#include "allocator/sequence_table.hpp"
#include "kvmesh/allocator.hpp"

namespace kvmesh {

/// Takes pages for sequences. Deterministic: a choice depends only on the pools, the sequence and
/// the earlier choices. Every policy falls over to another rank when the one it wants is full, so
/// it succeeds as long as any rank has a free page.
class PlacementPolicy {
 public:
  virtual ~PlacementPolicy() = default;

  /// Allocates what `take` needs to bring the sequence to `pages` pages; changes nothing that can
  /// be seen. `take` itself never fails.
  virtual void prepare(Sequence& sequence, std::int64_t pages, int ranks) const;

  /// Takes the sequence's logical pages [first, first + out.size()) into `out`. The pools have that
  /// many, and `prepare` was called.
  virtual void take(SequencePlacement& sequence, std::int64_t first, std::span<PageId> out,
                    PagePools& pools) = 0;
};

/// The policy that `options` asks for.
std::unique_ptr<PlacementPolicy> make_placement(const AllocatorOptions& options);

}  // namespace kvmesh
