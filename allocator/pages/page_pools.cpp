#include "allocator/pages/page_pools.hpp"

#include <algorithm>

namespace kvmesh {

PagePools::PagePools(int ranks, std::int64_t pages_per_rank, std::span<const std::int64_t> sizes)
    : pages_per_rank_(pages_per_rank),
      sizes_(static_cast<std::size_t>(ranks), static_cast<std::int32_t>(pages_per_rank)),
      handed_out_(sizes_.size(), 0),
      heads_(sizes_.size(), kEnd),
      free_counts_(sizes_.size(), 0),
      listed_(free_counts_),
      links_(sizes_.size() * static_cast<std::size_t>(pages_per_rank), kClosed),
      generations_(links_.size(), 0) {
  for (PageRank rank{0}; rank.value < ranks; ++rank.value) {
    if (!sizes.empty()) sizes_[at(rank)] = static_cast<std::int32_t>(sizes[at(rank)]);
    list_free_pages(rank, 0);
  }
}

/// Adds the rank's closed pages from `first` on to its list, the lowest on top.
void PagePools::list_free_pages(PageRank rank, std::int32_t first) {
  for (std::int32_t index = sizes_[at(rank)]; index-- > first;) {
    std::int32_t& link = links_[at(PageId{rank, index})];
    if (link != kClosed) continue;
    link = ~heads_[at(rank)];
    heads_[at(rank)] = index;
    ++listed_[at(rank)];
    count_available(rank, 1);
  }
}

void PagePools::resize(PageRank rank, std::int64_t size) {
  const auto wanted = static_cast<std::int32_t>(size);
  std::ranges::fill(handed_out_, 0);
  const std::int32_t before = std::exchange(sizes_[at(rank)], wanted);
  if (wanted >= before) return list_free_pages(rank, before);
  // Unlinks the free pages past the pool's new end; the others keep their order.
  for (std::int32_t* next = &heads_[at(rank)]; true;) {
    // A list's links are complements, its head is not.
    const bool is_head = next == &heads_[at(rank)];
    const std::int32_t index = is_head ? *next : ~*next;
    if (index == kEnd) return;
    std::int32_t& link = links_[at(PageId{rank, index})];
    if (index < wanted) {
      next = &link;
      continue;
    }
    *next = is_head ? ~link : link;
    link = kClosed;
    --listed_[at(rank)];
    count_available(rank, -1);
  }
}

std::vector<std::int64_t> PagePools::free_pages_per_rank() const {
  return {free_counts_.begin(), free_counts_.end()};
}

}  // namespace kvmesh
