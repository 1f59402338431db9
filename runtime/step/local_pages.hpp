// This rank's pages of each sequence, kept from step to step.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "kvmesh/attention.hpp"
#include "kvmesh/types.hpp"

namespace kvmesh {

/// A sequence's pages, as one rank sees them.
struct LocalSequence {
  std::vector<LocalPage> pages;    ///< this rank's, in logical order
  std::vector<std::int32_t> held;  ///< [ranks] number of pages that each rank holds
  /// `pages[fresh..]` have not been sent to the device. The backend that sends them sets this.
  std::size_t fresh = 0;
  std::size_t seen = 0;  ///< page-table entries (all ranks) processed so far
  PageId last;           ///< the last processed entry; invalid if there is none
};

/// Follows the page tables. The cost of a step is proportional to the pages added, not to the pages
/// held; the table of a sequence that got no page is not read.
class LocalPages {
 public:
  LocalPages(Rank me, int ranks) : me_(me), ranks_(static_cast<std::size_t>(ranks)) {}

  /// Adds the new entries of `table` (the pages with keys). Reads only entries after `seen`:
  /// earlier entries may change only through copied(), truncate() or erase().
  LocalSequence& update(SequenceId sequence, std::span<const PageId> table);
  /// Updates the last page, which copy on write may have replaced; `table` is the table after the
  /// copy.
  void copied(SequenceId sequence, std::span<const PageId> table);
  /// Shortens the sequence to `pages` pages. Call it before the allocator truncates: `table` is the
  /// table before.
  void truncate(SequenceId sequence, std::span<const PageId> table, std::size_t pages);
  void erase(SequenceId sequence);

 private:
  /// Returns null for a sequence that update() has not seen.
  LocalSequence* find(SequenceId sequence);
  void drop_last(LocalSequence& sequence, PageId page) const;

  Rank me_;
  std::size_t ranks_;
  std::deque<LocalSequence> sequences_;  // [slot]; a deque keeps references valid
};

}  // namespace kvmesh
