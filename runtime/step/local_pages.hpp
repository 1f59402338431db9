// This rank's pages of each sequence, kept from step to step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "kvmesh/allocator.hpp"
#include "kvmesh/attention.hpp"

namespace kvmesh {

/// A sequence's pages, as one rank sees them.
struct LocalSequence {
  std::vector<LocalPage> pages;    ///< this rank's, in logical order, without released ones
  std::vector<std::int32_t> held;  ///< [page ranks] number of the sequence's pages
  std::size_t seen = 0;            ///< page-table entries (all ranks) that these are made of
  bool is_lost = false;            ///< changes were missed: update() reads the table anew

  /// Returns the first page rank that takes part in the sequence's rows. If no rank has pages, rank
  /// 0 alone takes part.
  PageRank first_rank() const {
    const auto holder = std::ranges::find_if(held, [](std::int32_t pages) { return pages > 0; });
    return {holder == held.end() ? 0 : static_cast<std::int32_t>(holder - held.begin())};
  }
};

/// Follows the allocator's change log. The cost of a step is proportional to the pages added, not
/// to the pages held; the table of a sequence that got no page is not read.
/// REQUIRES: the allocator outlives it.
class LocalPages {
 public:
  LocalPages(PageRank me, PageAllocator& allocator)
      : me_(me),
        allocator_(allocator),
        cursor_(allocator.follow()),
        ranks_(static_cast<std::size_t>(allocator.options().ranks)) {}

  /// Brings the sequence up to date and returns it. `table` is the part of its page table whose
  /// pages have keys; update reads only the new entries.
  LocalSequence& update(SequenceId sequence, std::span<const PageId> table);
  PageRank me() const { return me_; }

 private:
  void follow();
  void apply(const Change& change);
  void replace(LocalSequence& sequence, const Change& change) const;
  void drop_last(LocalSequence& sequence, PageId page) const;
  void release(LocalSequence& sequence, const Change& change) const;

  PageRank me_;
  const PageAllocator& allocator_;
  ChangeCursor cursor_;
  std::size_t ranks_;
  std::deque<LocalSequence> sequences_;  // [slot]; a deque keeps references valid
};

}  // namespace kvmesh
