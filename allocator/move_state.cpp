// Pages that move to other places of the pools. An operation orders the copies; finish_moves then
// changes the page tables, or cancel_moves leaves them as they were.
#include <algorithm>
#include <numeric>

#include "allocator/state.hpp"
#include "allocator/surplus.hpp"
#include "core/check.hpp"

namespace kvmesh {
namespace {

std::int64_t held_pages(const PagePools& pools, PageRank rank) {
  return pools.size(rank) - pools.free_pages(rank);
}

/// Returns the rank of which the smallest part is held, among those with a free page; equal ones by
/// number. REQUIRES: a free page.
PageRank least_filled(const PagePools& pools) {
  PageRank best{-1};
  for (PageRank rank{0}; rank.value < pools.ranks(); ++rank.value) {
    if (pools.free_pages(rank) == 0) continue;
    if (best.value < 0 ||
        held_pages(pools, rank) * pools.size(best) < held_pages(pools, best) * pools.size(rank))
      best = rank;
  }
  return best;
}

/// Returns the rank with the most pages that hold nothing; equal ones by the most cached pages, and
/// by number.
PageRank roomiest(const PagePools& pools) {
  const auto room = [&](PageRank rank) {
    return std::pair(pools.free_pages(rank) - pools.cached_pages(rank), pools.cached_pages(rank));
  };
  PageRank best{0};
  for (PageRank rank{1}; rank.value < pools.ranks(); ++rank.value)
    if (room(rank) > room(best)) best = rank;
  return best;
}

std::size_t index(PageRank rank) { return static_cast<std::size_t>(rank.value); }

/// Returns how many cached pages the rank gives up, if all ranks together have room for `room`.
std::int64_t evicted_by(const PagePools& pools, PageRank rank, std::int64_t room) {
  const std::int64_t cached = pools.cached_pages();
  if (cached <= room) return 0;
  return ((cached - std::max<std::int64_t>(room, 0)) * pools.cached_pages(rank) + cached - 1) /
         cached;
}

}  // namespace

void PageAllocator::State::check_rank(PageRank rank) const {
  require(rank.value >= 0 && rank.value < options_.ranks, "rank {} of {}", rank.value,
          options_.ranks);
}

Result<Done> PageAllocator::State::can_resize(PageRank rank, std::int64_t pages) const {
  check_rank(rank);
  require(pages >= 0 && pages <= options_.pages_per_rank, "a pool of {} pages, of at most {}",
          pages, options_.pages_per_rank);
  std::int64_t stay = 0, leave = 0;
  for (std::int32_t index = 0; index < pools_.size(rank); ++index)
    if (pools_.in_use({rank, index})) ++(index < pages ? stay : leave);
  std::vector<std::int64_t> free = pools_.free_pages_per_rank();
  free[index(rank)] = pages - stay;
  if (leave > std::reduce(free.begin(), free.end())) return OutOfPages(leave, std::move(free));
  return Done{};
}

Result<std::vector<PageCopy>> PageAllocator::State::try_start_resize(PageRank rank,
                                                                     std::int64_t pages) {
  if (Result<Done> can = can_resize(rank, pages); !can) return can.reason();
  const std::int64_t before = pools_.size(rank);
  prepare_moves(std::max<std::int64_t>(before - pages, 0));

  resized_ = {rank, before};
  moving_ = Moving::kAlone;
  if (prefixes_ && pages < before) pin_cached(rank, pages);
  set_pool(rank, pages);
  sequences_.for_each([&](SequenceId, const Sequence& sequence) {
    PageRank to{-1};
    for (const PageId page : sequence.held_pages()) {
      if (page.rank() != rank || page.index() < pages || targets_[place(page)].valid()) continue;
      // Pages of one rank stay together, as far as there is room.
      const bool goes_on = to.value >= 0 && !sequence.placement.pages_on;
      if (!goes_on || pools_.free_pages(to) == 0)
        to = pools_.free_pages(rank) > 0 ? rank : least_filled(pools_);
      order_move(page, to);
    }
  });
  for (std::size_t i = pins_.size(); i-- > 0;)
    if (pins_[i].rank() == rank && pins_[i].index() >= pages)
      order_move(pins_[i], roomiest(pools_));
  journal_.fold_in(static_cast<std::uint64_t>(rank.value));
  record("size", SequenceId{}, static_cast<std::uint64_t>(pages));
  return moves_;
}

std::vector<PageCopy> PageAllocator::State::start_rebalance(std::int64_t limit) {
  require(limit >= 0, "rebalance of {} pages", limit);
  Surplus surplus(pools_);
  std::int64_t left = std::min(surplus.total(), limit);
  prepare_moves(left);

  moving_ = Moving::kAlone;
  // A short sequence moves as a whole, so that its combine still moves nothing; single pages are
  // taken from long ones first.
  for (const Leveled kind : {Leveled::kWhole, Leveled::kSpread, Leveled::kAny}) {
    if (left == 0) break;
    sequences_.for_each([&](SequenceId, const Sequence& sequence) {
      if (left > 0) left -= level(sequence, kind, left, surplus);
    });
  }
  record("balance", SequenceId{}, static_cast<std::uint64_t>(limit));
  return moves_;
}

/// Orders moves of the sequence's pages from ranks with a surplus to the ranks that lack the most.
/// Returns how many, at most `most`.
std::int64_t PageAllocator::State::level(const Sequence& sequence, Leveled kind, std::int64_t most,
                                         Surplus& surplus) {
  const std::span<const PageId> pages = sequence.held_pages();
  if (pages.empty() || (kind == Leveled::kSpread && !sequence.placement.pages_on)) return 0;
  if (kind == Leveled::kWhole &&
      (std::ssize(pages) > most || !moves_whole(pages, surplus, surplus.lacking())))
    return 0;
  const PageRank whole_to = surplus.lacking();
  std::int64_t moved = 0;
  for (const PageId page : pages) {
    if (moved == most) break;
    if (surplus[page.rank()] <= 0 || targets_[place(page)].valid()) continue;
    const PageRank to = kind == Leveled::kWhole ? whole_to : surplus.lacking();
    order_move(page, to);
    surplus.moved(page.rank(), to);
    ++moved;
  }
  return moved;
}

/// Returns whether all pages of a sequence can move to `to` together: they are on one rank, whose
/// surplus they do not exceed, `to` lacks as many, and no other sequence shares them.
bool PageAllocator::State::moves_whole(std::span<const PageId> pages, const Surplus& surplus,
                                       PageRank to) const {
  const PageRank home = pages.front().rank();
  const auto count = std::ssize(pages);
  return count <= surplus[home] && count <= -surplus[to] &&
         std::ranges::none_of(pages,
                              [&](PageId it) { return it.rank() != home || pools_.shared(it); });
}

/// Pins the cached pages past the new end that move. If there is no room for all cached pages, the
/// rank first evicts its share of those that have none.
void PageAllocator::State::pin_cached(PageRank rank, std::int64_t pages) {
  std::int64_t room = pages - pools_.size(rank) + pools_.free_pages();
  for (std::int64_t rest = evicted_by(pools_, rank, room); rest > 0; --rest)
    if (pools_.cached_pages(rank) > 0) prefixes_->evict_one(rank);
  for (const PageId page : prefixes_->cached_past(rank, pages)) pin_chain(page, room);
}

/// Pins a cached page and those before it in its chain, which must stay while it moves, because the
/// parents of a held page are held. Does nothing if there is no room for all of them.
bool PageAllocator::State::pin_chain(PageId page, std::int64_t room) {
  std::int64_t count = std::ssize(pins_);
  for (PageId it = page; it.valid() && !pools_.in_use(it); it = prefixes_->parent(it)) ++count;
  if (count > room) return false;
  for (PageId it = page; it.valid() && !pools_.in_use(it); it = prefixes_->parent(it)) {
    pools_.add_reference(it);
    pins_.push_back(it);
  }
  return true;
}

/// Gives the pins up, the least recently used pages first.
void PageAllocator::State::unpin() {
  for (; !pins_.empty(); pins_.pop_back()) pools_.give_back(pins_.back());
}

void PageAllocator::State::prepare_moves(std::int64_t most) {
  pins_.reserve(static_cast<std::size_t>(pools_.cached_pages()));
  moves_.clear();
  moves_.reserve(static_cast<std::size_t>(most));
  targets_.resize(static_cast<std::size_t>(options_.ranks * options_.pages_per_rank));
}

void PageAllocator::State::order_move(PageId source, PageRank to) {
  const PageId page = pools_.take(to);
  targets_[place(source)] = page;
  moves_.push_back({source, page, options_.page_size});
}

/// Resizes the pool, and evicts the cached pages past its new end.
void PageAllocator::State::set_pool(PageRank rank, std::int64_t pages) {
  if (prefixes_) prefixes_->evict_past(rank, pages);
  pools_.resize(rank, pages);
  if (prefixes_) prefixes_->resized(rank);
}

std::int64_t PageAllocator::State::finish_moves() {
  require(moving_ == Moving::kAlone || moving_ == Moving::kBeside, "no pages are being moved");
  std::int64_t moved = 0;
  for (const PageCopy& move : moves_) moved += move_published(move);
  if (prefixes_) prefixes_->all_moved([this](PageId page) { return targets_[place(page)]; });
  if (moved > 0) {
    sequences_.for_each([&](SequenceId id, Sequence& sequence) { relocate(id, sequence); });
  }
  unpin();
  for (const PageCopy& move : moves_) pools_.give_back(move.destination);  // the move's own
  if (resized_ && resized_->rank == pools_.leaving()) pools_.set_leaving(PageRank{-1});
  end_moves();
  record("done", SequenceId{});
  return moved;
}

/// Moves the prefix cache's entry of the page. Drops the move and returns false if neither a
/// sequence nor the cache has the page any more.
bool PageAllocator::State::move_published(const PageCopy& move) {
  const bool is_cached = pools_.is_cached(move.source);
  if (!is_cached && !pools_.in_use(move.source)) {
    targets_[place(move.source)] = PageId();
    return false;
  }
  if (is_cached) pools_.add_reference(move.source);
  if (pools_.is_kept(move.source)) prefixes_->moved(move.source, move.destination);
  if (is_cached) pools_.give_back(move.source);
  return true;
}

/// Replaces the entries of the sequence's page table whose content has moved.
void PageAllocator::State::relocate(SequenceId id, Sequence& sequence) {
  const auto first = static_cast<std::size_t>(sequence.placement.released);
  bool has_moved = false;
  for (std::size_t logical = first; logical < sequence.pages.size(); ++logical) {
    PageId& page = sequence.pages[logical];
    const PageId target = targets_[place(page)];
    if (!target.valid()) continue;
    const PageId source = std::exchange(page, target);
    pools_.add_reference(target);
    pools_.give_back(source);
    sequence.placement.removed(source.rank());
    sequence.placement.added(target.rank());
    // The home follows the first page, unless single pages moved beside steps: then the pages that
    // stay would count as away from home, and this one would move back. A stripe's start does not
    // follow: later pages count from it.
    if (moving_ == Moving::kAlone && logical == first &&
        options_.placement == Placement::kBalanced &&
        sequence.placement.anchor == source.rank().value)
      sequence.placement.anchor = target.rank().value;
    changes_.record({.sequence = id,
                     .position = static_cast<std::int32_t>(logical),
                     .old_page = source,
                     .new_page = target,
                     .kind = ChangeKind::kReplaced});
    has_moved = true;
  }
  sequence.version += has_moved ? 1 : 0;
}

void PageAllocator::State::cancel_moves() {
  require(moving_ != Moving::kNone, "no pages are being moved");
  give_back_destinations();
  if (resized_) set_pool(resized_->rank, resized_->pages);
  unpin();
  end_moves();
  record("undo", SequenceId{});
}

void PageAllocator::State::give_back_destinations() {
  if (moving_ == Moving::kGivenUp) return;
  for (std::size_t i = moves_.size(); i-- > 0;) pools_.give_back(moves_[i].destination);
}

void PageAllocator::State::end_moves() {
  for (const PageCopy& move : moves_) {
    targets_[place(move.source)] = PageId();
    if (moving_ != Moving::kAlone) pools_.end_move(move.source);
  }
  moves_.clear();
  resized_.reset();
  moving_ = Moving::kNone;
}

}  // namespace kvmesh
