// The logs of page-table changes and of evictions: the allocator appends, followers read on from
// cursors of their own.
#pragma once

#include <cstdint>
#include <span>

#include "kvmesh/api.h"
#include "kvmesh/types.hpp"

namespace KVMESH_API kvmesh {

enum class ChangeKind : std::uint8_t {
  kAdded,     ///< The sequence got `new_page` at its end, or shares it as a new fork, whose earlier
              ///< pages may be released.
  kReplaced,  ///< `new_page` took the place of `old_page`: a copy on write, a page that moved, or a
              ///< page that was published before with the same content.
  kDropped,   ///< The sequence gave up `old_page`, its last page (invalid: released before).
  kReleased,  ///< The sequence gave up `old_page`, which lies behind its window.
  kErased,    ///< The sequence is erased; its pages were dropped before. `position` is 0.
  kPublished,  ///< `new_page` of the sequence is in the prefix index.
};

/// One change of one entry of a page table. Entries that a kind does not use are invalid pages.
struct Change {
  SequenceId sequence{};
  std::int32_t position = 0;  ///< logical page
  PageId old_page{};
  PageId new_page{};
  ChangeKind kind = ChangeKind::kAdded;
  friend bool operator==(const Change&, const Change&) = default;
};

/// A follower's place in the log. PageAllocator::follow makes one.
struct ChangeCursor {
  std::uint64_t next = 0;
};

/// A follower's place among the evicted pages. PageAllocator::follow_evictions makes one.
struct EvictionCursor {
  std::uint64_t next = 0;
};

/// Changes in the order in which they happened.
struct ChangeRun {
  std::span<const Change> changes{};
  /// The log dropped changes that the follower had not read: it must read the page tables anew.
  bool lost = false;
};

}  // namespace kvmesh
