// Pages that move beside other operations, which change tables and free pages meanwhile. Such a
// page is marked in the pools: it is not written in place, and its place is not handed out again
// until the moves have ended. So the fate of its sequences decides only whether its move has an
// effect.
#include <algorithm>
#include <numeric>

#include "allocator/state.hpp"
#include "allocator/surplus.hpp"
#include "core/check.hpp"

namespace kvmesh {

std::vector<PageCopy> PageAllocator::State::start_rebalance_now(const RebalanceOptions& options) {
  require(options.limit >= 0, "rebalance of {} pages", options.limit);
  require(options.leaving.value < options_.ranks, "rank {} of {}", options.leaving.value,
          options_.ranks);
  const PageRank leaving{std::max(options.leaving.value, -1)};
  prepare_moves(std::min(options.limit, options_.ranks * options_.pages_per_rank));

  pools_.set_leaving(leaving);
  if (!has_states()) {  // a state is written in place by every step
    const std::int64_t left = order_side_moves(options.limit, leaving);
    if (prefixes_ && leaving.value >= 0) move_cached(leaving, left);
  }
  if (!moves_.empty()) {
    moving_ = Moving::kBeside;
    mark_holders();
  }
  journal_.fold_in(static_cast<std::uint64_t>(leaving.value));
  record("order", SequenceId{}, static_cast<std::uint64_t>(options.limit));
  return moves_;
}

void PageAllocator::State::give_up_moves() {
  require(moving_ == Moving::kBeside, "no pages are being moved beside other operations");
  give_back_destinations();
  moving_ = Moving::kGivenUp;
  record("quit", SequenceId{});
}

/// Orders moves of pages that sequences hold, at most `limit`. Returns how many more may move.
std::int64_t PageAllocator::State::order_side_moves(std::int64_t limit, PageRank leaving) {
  if (limit == 0) return 0;
  Surplus surplus(pools_, leaving);
  sequences_.for_each(
      [&](SequenceId, const Sequence& sequence) { count_at_home(sequence, surplus); });
  const bool is_uneven = surplus.is_uneven();
  std::int64_t left = limit;
  sequences_.for_each([&](SequenceId, const Sequence& sequence) {
    if (left > 0) left -= bring_home(sequence, left, surplus);
  });
  if (is_uneven) left -= level_beside(left, surplus);
  sequences_.for_each([&](SequenceId, const Sequence& sequence) {
    if (leaving.value >= 0 && left > 0) left -= move_off(leaving, sequence, left);
  });
  return left;
}

/// Orders moves until each rank has its share. Returns how many.
std::int64_t PageAllocator::State::level_beside(std::int64_t most, Surplus& surplus) {
  std::int64_t left = most;
  for (const Leveled kind : {Leveled::kWhole, Leveled::kSpread, Leveled::kAny}) {
    if (left == 0 || surplus.total() == 0) break;
    sequences_.for_each([&](SequenceId, Sequence& sequence) {
      if (left > 0) left -= move_beside(sequence, kind, left, surplus);
    });
  }
  return most - left;
}

/// The pages that steps do not write: those full of tokens. Pages of a match may be written by
/// loads.
std::span<const PageId> PageAllocator::State::unwritten_pages(const Sequence& sequence) const {
  const auto full = static_cast<std::size_t>(sequence.length / options_.page_size);
  const auto released = static_cast<std::size_t>(sequence.placement.released);
  if (sequence.is_match || full <= released) return {};
  return std::span(sequence.pages).subspan(released, full - released);
}

/// Counts the pages that a short sequence has not filled as if they were at its home. A sequence
/// that moves leaves them behind, because steps write them, and they follow when they are full; so
/// no other page moves in their place. A page that forks share is left out, because it may have
/// several homes.
void PageAllocator::State::count_at_home(const Sequence& sequence, Surplus& surplus) const {
  const SequencePlacement& placement = sequence.placement;
  if (options_.placement != Placement::kBalanced || placement.pages_on || sequence.is_match ||
      placement.anchor == SequencePlacement::kNone || placement.anchor == pools_.leaving().value)
    return;
  const auto full = static_cast<std::size_t>(sequence.length / options_.page_size);
  const auto first = std::max(full, static_cast<std::size_t>(placement.released));
  for (std::size_t logical = first; logical < sequence.pages.size(); ++logical)
    if (!pools_.shared(sequence.pages[logical]))
      surplus.moved(sequence.pages[logical].rank(), PageRank{placement.anchor});
}

/// Orders moves of a short sequence's pages to its home, where that lacks pages. Returns how many.
std::int64_t PageAllocator::State::bring_home(const Sequence& sequence, std::int64_t most,
                                              Surplus& surplus) {
  const SequencePlacement& placement = sequence.placement;
  if (options_.placement != Placement::kBalanced || placement.pages_on ||
      placement.anchor == SequencePlacement::kNone)
    return 0;
  const PageRank home{placement.anchor};
  std::int64_t moved = 0;
  for (const PageId page : unwritten_pages(sequence)) {
    if (moved == most || surplus[home] >= 0 || pools_.free_pages(home) == 0) break;
    if (surplus[page.rank()] <= 0 || targets_[place(page)].valid()) continue;
    order_side_move(page, home);
    surplus.moved(page.rank(), home);
    ++moved;
  }
  return moved;
}

/// As `level`, for the pages that steps do not write. Pages of a short sequence stay together as
/// far as they can. A sequence that moves whole has its home at the target from now on; later calls
/// bring the pages past `most` there.
std::int64_t PageAllocator::State::move_beside(Sequence& sequence, Leveled kind, std::int64_t most,
                                               Surplus& surplus) {
  const std::span<const PageId> pages = unwritten_pages(sequence);
  if (pages.empty() || (kind == Leveled::kSpread && !sequence.placement.pages_on)) return 0;
  PageRank to = next_target(PageRank{-1}, surplus);
  if (kind == Leveled::kWhole && (to.value < 0 || std::ssize(pages) > pools_.free_pages(to) ||
                                  !moves_whole(sequence.held_pages(), surplus, to)))
    return 0;
  std::int64_t moved = 0;
  for (const PageId page : pages) {
    if (moved == most) break;
    if (surplus[page.rank()] <= 0 || targets_[place(page)].valid()) continue;
    if (kind != Leveled::kWhole)
      to = next_target(sequence.placement.pages_on ? PageRank{-1} : to, surplus);
    if (to.value < 0) break;
    order_side_move(page, to);
    surplus.moved(page.rank(), to);
    ++moved;
  }
  if (kind == Leveled::kWhole) {
    surplus.moved(pages.front().rank(), to, std::ssize(sequence.held_pages()) - moved);
    if (options_.placement == Placement::kBalanced) sequence.placement.anchor = to.value;
  }
  return moved;
}

/// Orders moves of the pages that levelling has left on the rank that is leaving: where pools are
/// nearly full, levelling keeps the last free pages for those that are to follow their sequences.
std::int64_t PageAllocator::State::move_off(PageRank leaving, const Sequence& sequence,
                                            std::int64_t most) {
  std::int64_t moved = 0;
  for (const PageId page : unwritten_pages(sequence)) {
    if (page.rank() != leaving || targets_[place(page)].valid()) continue;
    const PageRank to = roomiest_but(leaving);
    if (moved == most || to.value < 0) break;
    order_side_move(page, to);
    ++moved;
  }
  return moved;
}

/// Returns the other rank with the most free pages, or a negative one if there is none.
PageRank PageAllocator::State::roomiest_but(PageRank leaving) const {
  PageRank best{-1};
  for (PageRank rank{0}; rank.value < pools_.ranks(); ++rank.value) {
    if (rank == leaving || pools_.free_pages(rank) == 0) continue;
    if (best.value < 0 || pools_.free_pages(rank) > pools_.free_pages(best)) best = rank;
  }
  return best;
}

/// Returns `last` while it lacks pages and has free ones. Otherwise returns, among the ranks with
/// free pages, the one that lacks the most; a negative rank if none lacks any.
PageRank PageAllocator::State::next_target(PageRank last, const Surplus& surplus) const {
  const auto takes = [&](PageRank rank) {
    return rank.value >= 0 && surplus[rank] < 0 && pools_.free_pages(rank) > 0;
  };
  if (takes(last)) return last;
  PageRank best{-1};
  for (PageRank rank{0}; rank.value < pools_.ranks(); ++rank.value)
    if (takes(rank) && (best.value < 0 || surplus[rank] < surplus[best])) best = rank;
  return best;
}

/// Orders moves of at most `most` cached pages from the rank that is leaving to pages that hold
/// nothing. Of the most recently used pages that there is room for, those used the longest ago move
/// first: each arrives as the last one to be evicted, so the order stays the same over several
/// calls.
void PageAllocator::State::move_cached(PageRank leaving, std::int64_t most) {
  std::vector<std::int64_t> room(static_cast<std::size_t>(pools_.ranks()));
  for (PageRank rank{0}; rank.value < pools_.ranks(); ++rank.value)
    if (rank != leaving)
      room[static_cast<std::size_t>(rank.value)] =
          pools_.free_pages(rank) - pools_.cached_pages(rank);
  const std::vector<PageId> pages = prefixes_->cached_past(leaving, 0);
  const std::int64_t fitting = std::min(std::reduce(room.begin(), room.end()), std::ssize(pages));
  for (std::int64_t i = fitting - 1; i >= std::max<std::int64_t>(0, fitting - most); --i) {
    const auto to = std::ranges::max_element(room);
    --*to;
    order_side_move(pages[static_cast<std::size_t>(i)],
                    PageRank{static_cast<std::int32_t>(to - room.begin())});
  }
}

/// Marks the source at once, because an eviction for a later destination may free it.
void PageAllocator::State::order_side_move(PageId source, PageRank to) {
  pools_.begin_move(source);
  order_move(source, to);
}

/// Makes sequences that hold moving pages copy them before they write to them, and makes plans that
/// would write to them stale.
void PageAllocator::State::mark_holders() {
  sequences_.for_each([&](SequenceId, Sequence& sequence) {
    const auto is_moving = [&](PageId page) { return targets_[place(page)].valid(); };
    if (std::ranges::none_of(sequence.held_pages(), is_moving)) return;
    sequence.may_share = true;
    ++sequence.version;
  });
}

}  // namespace kvmesh
