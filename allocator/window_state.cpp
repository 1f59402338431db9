// Pages behind the window of an allocator's sequences.
#include <algorithm>

#include "allocator/state.hpp"
#include "core/check.hpp"

namespace kvmesh {

std::int64_t PageAllocator::State::pages_behind(std::int64_t first_query) const {
  return std::max<std::int64_t>(first_query - options_.window + 1, 0) / options_.page_size;
}

void PageAllocator::State::slide_window(SequenceId id, std::int64_t first_query) {
  const Sequence& sequence = sequences_.at(id);
  require(options_.window > 0, "slide_window of an allocator without a window");
  require(first_query >= 0 && first_query <= sequence.length,
          "slide_window to position {} of a sequence of {}", first_query, sequence.length);
  give_up_before(id, pages_behind(first_query) * options_.page_size);
}

void PageAllocator::State::give_up_before(SequenceId id, std::int64_t first) {
  Sequence& sequence = sequences_.at(id);
  require(options_.window > 0, "give_up_before of an allocator without a window");
  require(first >= 0 && first <= sequence.length, "give_up_before position {} of a sequence of {}",
          first, sequence.length);
  if (first <= first_kept(sequence)) return;

  const std::int64_t behind = first / options_.page_size;
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
  sequence.placement.released_slots = static_cast<std::int32_t>(first % options_.page_size);
  ++sequence.version;
  record("window", id, static_cast<std::uint64_t>(first));
}

/// Returns whether the first page that the sequence has is whole. Gives up one that is not if the
/// next query sees none of it, so that the pages after it can be published.
bool PageAllocator::State::begins_with_whole_page(SequenceId id, const Sequence& sequence) {
  const SequencePlacement& placement = sequence.placement;
  if (placement.released_slots > 0 && pages_behind(sequence.length) > placement.released)
    give_up_before(id, (placement.released + std::int64_t{1}) * options_.page_size);
  return placement.released_slots == 0;
}

void PageAllocator::State::check_truncate(SequenceId id, std::int64_t length) const {
  const Sequence& sequence = sequences_.at(id);
  require(length >= 0 && length <= sequence.length, "truncate to {} tokens of a sequence of {}",
          length, sequence.length);
  const std::int64_t first = first_kept(sequence);
  require(length == 0 || first == 0 || length - options_.window + 1 >= first,
          "truncate to {} tokens of a sequence whose first {} tokens, behind a window of {}, are "
          "given up",
          length, first, options_.window);
}

}  // namespace kvmesh
