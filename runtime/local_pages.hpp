// Which pages of each sequence are this rank's, kept from step to step.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "kvmesh/attention.hpp"
#include "kvmesh/types.hpp"

namespace kvmesh {

/// A sequence, seen from one rank.
struct LocalSequence {
  std::vector<LocalPage> pages;    ///< mine, in logical order
  std::vector<std::int32_t> held;  ///< how many pages each rank has
  /// Those from here on are new since whoever copies the list (a device) last looked, and set this.
  std::size_t fresh = 0;
  std::vector<PageId> table;  ///< all pages, as last seen
};

/// Follows the page tables: a step costs what was added, not what there is.
class LocalPages {
 public:
  LocalPages(Rank me, int ranks) : me_(me), ranks_(static_cast<std::size_t>(ranks)) {}

  /// `pages`: those with keys. They may differ from what was seen last in the last page, which copy
  /// on write replaces, and in what comes after it, and where `truncate` was told of it.
  LocalSequence& update(SequenceId sequence, std::span<const PageId> pages);
  /// The sequence has been cut to so many pages.
  void truncate(SequenceId sequence, std::int64_t pages);
  void erase(SequenceId sequence);

 private:
  void drop_last(LocalSequence& sequence) const;

  Rank me_;
  std::size_t ranks_;
  std::deque<LocalSequence> sequences_;  // by slot; those there stay where they are
};

}  // namespace kvmesh
