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
  std::size_t seen = 0;  ///< pages of the table, of any rank, that the above is made of
  PageId last;           ///< of those; none: not valid
};

/// Follows the page tables: a step costs what was added, not what there is, and does not touch the
/// table of a sequence that got no page.
class LocalPages {
 public:
  LocalPages(Rank me, int ranks) : me_(me), ranks_(static_cast<std::size_t>(ranks)) {}

  /// `table`: the pages with keys. Only those after what was seen are looked at; of what else may
  /// have changed, the following were told.
  LocalSequence& update(SequenceId sequence, std::span<const PageId> table);
  /// Copy on write may have replaced the last page of the sequence, whose table now is `table`.
  void copied(SequenceId sequence, std::span<const PageId> table);
  /// The sequence is about to be cut to so many pages of its `table`.
  void truncate(SequenceId sequence, std::span<const PageId> table, std::size_t pages);
  void erase(SequenceId sequence);

 private:
  /// Null: never seen.
  LocalSequence* find(SequenceId sequence);
  void drop_last(LocalSequence& sequence, PageId page) const;

  Rank me_;
  std::size_t ranks_;
  std::deque<LocalSequence> sequences_;  // by slot; those there stay where they are
};

}  // namespace kvmesh
