// The pages of all ranks: free lists, reference counts, generations.
#pragma once

#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "allocator/pages/digest.hpp"
#include "kvmesh/types.hpp"

namespace kvmesh {

/// Decides what becomes of kept pages. Its functions change no reference count.
class PageKeeper {
 public:
  /// The last reference of a kept page is gone: it is cached.
  virtual void released(PageId page) = 0;
  /// A cached page gets a reference again.
  virtual void taken(PageId page) = 0;
  /// Frees at least one cached page of `rank`, by free_cached. REQUIRES: there is one.
  virtual void evict_one(PageRank rank) = 0;

 protected:
  ~PageKeeper() = default;
};

/// A structure of arrays over the pages of all ranks, rank after rank. A page is free, held or
/// cached, and one word holds its state, so that handing it out touches little memory:
///
///   link <  0             free, and ~link is the index of the rank's next free page, or kEnd
///   link == kClosed       past the end of the rank's pool, which has fewer pages than it could
///   link == kKept         cached: kept for its content, without references
///   kKept + n (or n > 0)  held by n sequences, and to be cached (or freed) after the last
///   kMoving + the above   the same, and being copied to move; freed or evicted it is kMoving, and
///                         stays off the list until the move ends
///
/// Cached pages count as free, unless they are being copied: when a page of a rank with an empty
/// list is taken, the keeper evicts one.
///
/// Each rank's free list is a stack: the last page freed, whose words are still in the cache, is
/// handed out first. Nothing allocates or throws after construction. REQUIRES: callers pass only
/// ids that these pools handed out, and check for a free page before they take one.
class PagePools {
 public:
  /// A rank has at most `pages_per_rank` pages, and `sizes[rank]` now; without sizes all of them.
  PagePools(int ranks, std::int64_t pages_per_rank, std::span<const std::int64_t> sizes = {});

  int ranks() const { return static_cast<int>(heads_.size()); }
  /// The most pages that a rank can have.
  std::int64_t pages_per_rank() const { return pages_per_rank_; }
  /// The pages that the rank has: those with an index below.
  std::int64_t size(PageRank rank) const { return sizes_[at(rank)]; }
  /// The pages that can be handed out: free or cached.
  std::int64_t free_pages() const { return free_total_; }
  std::int64_t free_pages(PageRank rank) const { return free_counts_[at(rank)]; }
  std::int64_t cached_pages() const { return cached_total_; }
  /// The pages that free_cached freed so far.
  std::int64_t evicted_pages() const { return evicted_total_; }
  std::int64_t cached_pages(PageRank rank) const {
    return free_counts_[at(rank)] - listed_[at(rank)];
  }
  /// The pages that can be handed out without an eviction.
  std::int64_t unused_pages(PageRank rank) const { return listed_[at(rank)]; }
  std::vector<std::int64_t> free_pages_per_rank() const;

  /// Whether fewer pages of `a` than of `b` were handed out since a pool was resized, by their
  /// sizes, and by more than `margin`: what is cached on `a` is older then.
  /// REQUIRES: neither pool has 0 pages.
  bool is_behind(PageRank a, PageRank b, std::int64_t margin = 0) const {
    return (handed_out_[at(a)] + static_cast<std::uint64_t>(margin)) *
               static_cast<std::uint64_t>(size(b)) <
           handed_out_[at(b)] * static_cast<std::uint64_t>(size(a));
  }

  bool contains(PageId page) const {
    return page.rank().value < ranks() && page.index() < pages_per_rank_;
  }
  bool in_use(PageId page) const { return reference_count(page) > 0; }
  bool is_cached(PageId page) const { return (links_[at(page)] & ~kMoving) == kKept; }
  bool is_kept(PageId page) const { return links_[at(page)] >= kKept; }
  bool shared(PageId page) const { return reference_count(page) > 1; }
  /// True if one sequence holds the page, nothing keeps its content, and it is not being copied.
  bool writable(PageId page) const { return links_[at(page)] == 1; }
  std::int32_t reference_count(PageId page) const {
    const std::int32_t link = links_[at(page)];
    return link < 0 ? 0 : link & ~(kKept | kMoving);
  }
  std::uint32_t generation(PageId page) const { return generations_[at(page)]; }
  bool is_closed(PageId page) const { return links_[at(page)] == kClosed; }
  bool is_moving(PageId page) const { return links_[at(page)] > 0 && (links_[at(page)] & kMoving); }
  /// The free pages of `rank` for sequences that grow: none of the rank that is leaving, while
  /// others have some.
  std::int64_t room(PageRank rank) const {
    const std::int64_t free = free_pages(rank);
    return rank == leaving_ && free < free_total_ ? 0 : free;
  }
  PageRank leaving() const { return leaving_; }
  /// A negative rank: none is.
  void set_leaving(PageRank rank) { leaving_ = rank; }

  /// A free page of `rank`, now with one reference. The rank has one.
  PageId take(PageRank rank);
  /// One free page of `rank` for each element of `out`. The rank has that many.
  void take(PageRank rank, std::span<PageId> out);
  /// Adds a reference to a held or cached page.
  void add_reference(PageId page) {
    std::int32_t& link = links_[at(page)];
    const std::int32_t before = link++;
    if ((before & ~kMoving) != kKept) return;
    if (before == kKept) count_cached(page.rank(), -1);
    keeper_->taken(page);
  }
  /// Drops a reference; the last one frees the page, or makes it cached if it is kept.
  void give_back(PageId page);

  /// `keeper` outlives the pools' use.
  void keep_with(PageKeeper* keeper) { keeper_ = keeper; }
  /// Keeps a held page when its last reference goes. REQUIRES: a keeper.
  void keep(PageId page) { links_[at(page)] |= kKept; }
  /// Frees a cached page.
  void free_cached(PageId page) {
    ++evicted_total_;
    if (is_moving(page)) {
      links_[at(page)] = kMoving;
      return;
    }
    count_cached(page.rank(), -1);
    put_on_list(page);
  }

  /// Marks the page as being copied: it is neither handed out nor writable then. REQUIRES: it is
  /// held or cached, and not moving.
  void begin_move(PageId page) {
    if (is_cached(page)) count_cached(page.rank(), -1);
    links_[at(page)] |= kMoving;
  }
  /// The copy has ended: frees the page if no sequence holds it and it is not cached.
  void end_move(PageId page) {
    const std::int32_t link = links_[at(page)] &= ~kMoving;
    if (link == 0) return put_on_list(page);
    if (link == kKept) count_cached(page.rank(), 1);
  }

  /// Gives the rank `size` pages. Free pages past them cannot be handed out any more, nor held ones
  /// when they are given back. REQUIRES: no page past them is cached.
  void resize(PageRank rank, std::int64_t size);
  /// `to` is kept in the place of `from`. REQUIRES: `from` is kept, both are held.
  void keep_instead(PageId from, PageId to) {
    links_[at(from)] &= ~kKept;
    links_[at(to)] |= kKept;
  }

  /// Hash of every page handed out and freed so far, in order: it fixes the order of the free
  /// lists.
  std::uint64_t history() const { return history_; }

  /// The first free page of `rank`, and the one after `page`; invalid at the end. For checks.
  PageId first_free(PageRank rank) const { return listed(rank, heads_[at(rank)]); }
  PageId next_free(PageId page) const { return listed(page.rank(), ~links_[at(page)]); }

 private:
  static constexpr std::int32_t kEnd = PageId::kMaxPagesPerRank;
  static constexpr std::int32_t kKept = 1 << 30;
  static constexpr std::int32_t kMoving = 1 << 29;
  static constexpr std::int32_t kClosed = INT32_MIN;

  static std::size_t at(PageRank rank) { return static_cast<std::size_t>(rank.value); }
  std::size_t at(PageId page) const {
    return at(page.rank()) * static_cast<std::size_t>(pages_per_rank_) +
           static_cast<std::size_t>(page.index());
  }
  void count_available(PageRank rank, std::int32_t change) {
    free_counts_[at(rank)] += change;
    free_total_ += change;
  }
  void count_cached(PageRank rank, std::int32_t change) {
    count_available(rank, change);
    cached_total_ += change;
  }
  void put_on_list(PageId page) {
    const std::size_t rank = at(page.rank());
    history_ = fold(history_, ~std::uint64_t{page.bits()});
    if (page.index() >= sizes_[rank]) {
      links_[at(page)] = kClosed;
      return;
    }
    links_[at(page)] = ~heads_[rank];
    heads_[rank] = page.index();
    ++listed_[rank];
    count_available(page.rank(), 1);
  }
  PageId listed(PageRank rank, std::int32_t index) const {
    return index == kEnd ? PageId{} : PageId{rank, index};
  }

  void list_free_pages(PageRank rank, std::int32_t first);

  std::int64_t pages_per_rank_;
  PageRank leaving_{-1};
  std::int64_t free_total_ = 0;
  std::int64_t cached_total_ = 0;
  std::int64_t evicted_total_ = 0;
  PageKeeper* keeper_ = nullptr;
  std::uint64_t history_ = 0;
  std::vector<std::int32_t> sizes_;         // [ranks] pages
  std::vector<std::uint64_t> handed_out_;   // [ranks] pages, since a pool was resized
  std::vector<std::int32_t> heads_;         // [ranks] first free index, or kEnd
  std::vector<std::int32_t> free_counts_;   // [ranks] free or cached
  std::vector<std::int32_t> listed_;        // [ranks] free
  std::vector<std::int32_t> links_;         // [ranks * pages_per_rank]
  std::vector<std::uint32_t> generations_;  // [ranks * pages_per_rank] times handed out
};

inline PageId PagePools::take(PageRank rank) {
  PageId page;
  take(rank, {&page, 1});
  return page;
}

inline void PagePools::take(PageRank rank, std::span<PageId> out) {
  while (listed_[at(rank)] < static_cast<std::int32_t>(out.size())) keeper_->evict_one(rank);
  const std::size_t base = at(PageId{rank, 0});
  std::int32_t head = heads_[at(rank)];
  std::uint64_t history = history_;
  for (PageId& page : out) {
    page = PageId{rank, head};
    const std::size_t place = base + static_cast<std::size_t>(head);
    head = ~links_[place];
    links_[place] = 1;
    ++generations_[place];
    history = fold(history, page.bits());
  }
  history_ = history;
  handed_out_[at(rank)] += out.size();
  heads_[at(rank)] = head;
  listed_[at(rank)] -= static_cast<std::int32_t>(out.size());
  count_available(rank, -static_cast<std::int32_t>(out.size()));
}

inline void PagePools::give_back(PageId page) {
  const std::int32_t link = --links_[at(page)];
  if (link <= 0) return put_on_list(page);
  if ((link & ~kMoving) != kKept) return;
  if (link == kKept) count_cached(page.rank(), 1);
  keeper_->released(page);
}

}  // namespace kvmesh
