// How far the pages that each rank holds are from its share of all held pages.
#pragma once

#include <cstdint>
#include <vector>

#include "allocator/pages/page_pools.hpp"

namespace kvmesh {

/// How many pages more each rank holds than its share, by the sizes of the pools; negative where it
/// lacks pages.
class Surplus {
 public:
  /// The remainder of the division goes, page by page, to the ranks with the largest surplus.
  /// `leaving` has no share; if it is negative, no rank is leaving.
  explicit Surplus(const PagePools& pools, PageRank leaving = PageRank{-1});

  std::int64_t operator[](PageRank rank) const { return pages_[at(rank)]; }
  /// Whether a rank holds over a 64th more than its share, or lacks over an eighth of it. The first
  /// keeps the fullest rank, for which steps wait, within 1.02 of the mean. The second fills a rank
  /// that has come back while each of many other ranks has only a small surplus.
  bool is_uneven() const;
  /// The pages that must move until each rank has its share.
  std::int64_t total() const;
  /// The rank that lacks the most pages; equal ones by number.
  PageRank lacking() const;
  void moved(PageRank from, PageRank to, std::int64_t pages = 1) {
    pages_[at(from)] -= pages;
    pages_[at(to)] += pages;
  }

 private:
  static std::size_t at(PageRank rank) { return static_cast<std::size_t>(rank.value); }

  std::vector<std::int64_t> pages_;   // [rank]
  std::vector<std::int64_t> shares_;  // [rank] rounded down
};

}  // namespace kvmesh
