// The pages of all ranks: free lists, reference counts, generations.
#pragma once

#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "allocator/digest.hpp"
#include "kvmesh/types.hpp"

namespace kvmesh {

/// A structure of arrays over the pages of all ranks, rank after rank. A page is free or in use,
/// and one word says which, so that handing it out touches as little memory as it can:
///
///   link >= 1   in use by `link` sequences
///   link <  0   free, and ~link is the index of the next free page of the same rank, or kEnd
///
/// Each rank's free list is a stack: the page given back last, whose words are still in the cache,
/// is handed out first. Callers pass only ids that these pools handed out, and check for a free
/// page before they take one: nothing here allocates or throws once constructed.
class PagePools {
 public:
  PagePools(int ranks, std::int64_t pages_per_rank);

  int ranks() const { return static_cast<int>(heads_.size()); }
  std::int64_t pages_per_rank() const { return pages_per_rank_; }
  std::int64_t free_pages() const { return free_total_; }
  std::int64_t free_pages(Rank rank) const { return free_counts_[at(rank)]; }
  std::vector<std::int64_t> free_pages_per_rank() const;

  bool contains(PageId page) const {
    return page.rank().value < ranks() && page.index() < pages_per_rank_;
  }
  bool in_use(PageId page) const { return links_[at(page)] > 0; }
  bool shared(PageId page) const { return links_[at(page)] > 1; }
  std::int32_t reference_count(PageId page) const { return in_use(page) ? links_[at(page)] : 0; }
  std::uint32_t generation(PageId page) const { return generations_[at(page)]; }

  /// A free page of `rank`, now with one reference. The rank has one.
  PageId take(Rank rank);
  /// One free page of `rank` for each element of `out`. The rank has that many.
  void take(Rank rank, std::span<PageId> out);
  void add_reference(PageId page) { ++links_[at(page)]; }
  /// Drops a reference; the last one frees the page.
  void give_back(PageId page);

  /// Hash of every page handed out and freed so far, in order: it fixes the order of the free
  /// lists.
  std::uint64_t history() const { return history_; }

  /// The first free page of `rank`, and the one after `page`; invalid at the end. For checks.
  PageId first_free(Rank rank) const { return listed(rank, heads_[at(rank)]); }
  PageId next_free(PageId page) const { return listed(page.rank(), ~links_[at(page)]); }

 private:
  static constexpr std::int32_t kEnd = PageId::kMaxPagesPerRank;

  static std::size_t at(Rank rank) { return static_cast<std::size_t>(rank.value); }
  std::size_t at(PageId page) const {
    return at(page.rank()) * static_cast<std::size_t>(pages_per_rank_) +
           static_cast<std::size_t>(page.index());
  }
  PageId listed(Rank rank, std::int32_t index) const {
    return index == kEnd ? PageId{} : PageId{rank, index};
  }

  std::int64_t pages_per_rank_;
  std::int64_t free_total_;
  std::uint64_t history_ = 0;
  std::vector<std::int32_t> heads_;         // [ranks] first free index, or kEnd
  std::vector<std::int32_t> free_counts_;   // [ranks]
  std::vector<std::int32_t> links_;         // [ranks * pages_per_rank]
  std::vector<std::uint32_t> generations_;  // [ranks * pages_per_rank] times handed out
};

inline PageId PagePools::take(Rank rank) {
  PageId page;
  take(rank, {&page, 1});
  return page;
}

inline void PagePools::take(Rank rank, std::span<PageId> out) {
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
  heads_[at(rank)] = head;
  free_counts_[at(rank)] -= static_cast<std::int32_t>(out.size());
  free_total_ -= static_cast<std::int64_t>(out.size());
}

inline void PagePools::give_back(PageId page) {
  std::int32_t& link = links_[at(page)];
  if (--link > 0) return;
  const std::size_t rank = at(page.rank());
  link = ~heads_[rank];
  heads_[rank] = page.index();
  ++free_counts_[rank];
  ++free_total_;
  history_ = fold(history_, ~std::uint64_t{page.bits()});
}

}  // namespace kvmesh
