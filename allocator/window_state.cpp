// Pages behind the window of an allocator's sequences.
#include <algorithm>

#include "allocator/state.hpp"
#include "core/check.hpp"

namespace kvmesh {

std::int64_t PageAllocator::State::pages_behind(std::int64_t first_query) const {
  return std::max<std::int64_t>(first_query - options_.window + 1, 0) / options_.page_size;
}

void PageAllocator::State::slide_window(SequenceId id, std::int64_t first_query) {
  Sequence& sequence = sequences_.at(id);
  require(options_.window > 0, "slide_window of an allocator without a window");
  require(first_query >= 0 && first_query <= sequence.length,
          "slide_window to position {} of a sequence of {}", first_query, sequence.length);
  const std::int64_t behind = pages_behind(first_query);
  if (behind <= sequence.placement.released) return;

  // From the end, so that followers which erase from a list move only what is kept.
  for (std::int64_t logical = behind; logical-- > sequence.placement.released;) {
    PageId& page = sequence.pages[static_cast<std::size_t>(logical)];
    changes_.record({.sequence = id,
                     .position = static_cast<std::int32_t>(logical),
                     .old_page = page,
                     .kind = ChangeKind::kReleased});
    sequence.placement.removed(page.rank());
    pools_.give_back(page);
    page = PageId();
  }
  sequence.placement.released = static_cast<std::int32_t>(behind);
  ++sequence.version;
  record("window", id, static_cast<std::uint64_t>(first_query));
}

void PageAllocator::State::check_truncate(SequenceId id, std::int64_t length) const {
  const Sequence& sequence = sequences_.at(id);
  require(length >= 0 && length <= sequence.length, "truncate to {} tokens of a sequence of {}",
          length, sequence.length);
  const std::int32_t released = sequence.placement.released;
  require(length == 0 || released == 0 || pages_behind(length) >= released,
          "truncate to {} tokens of a sequence whose first {} pages, behind a window of {}, are "
          "given up",
          length, released, options_.window);
}

}  // namespace kvmesh
