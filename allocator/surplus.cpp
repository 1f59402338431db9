#include "allocator/surplus.hpp"

#include <algorithm>
#include <numeric>

namespace kvmesh {

Surplus::Surplus(const PagePools& pools, PageRank leaving) {
  const auto ranks = static_cast<std::size_t>(pools.ranks());
  std::vector<std::int64_t> held(ranks), size(ranks);
  for (PageRank rank{0}; rank.value < pools.ranks(); ++rank.value) {
    held[at(rank)] = pools.size(rank) - pools.free_pages(rank);
    size[at(rank)] = rank == leaving ? 0 : pools.size(rank);
  }
  pages_.resize(ranks);
  shares_.resize(ranks);
  const std::int64_t all = std::reduce(held.begin(), held.end());
  const std::int64_t room = std::reduce(size.begin(), size.end());
  if (room == 0) return;  // there is no rank to move to
  std::int64_t rest = all;
  std::vector<bool> is_rounded(ranks);
  for (std::size_t r = 0; r < ranks; ++r) {
    const std::int64_t share = all * size[r] / room;  // under 2^54: at most 2^32 pages in all
    is_rounded[r] = all * size[r] % room != 0;
    shares_[r] = share;
    pages_[r] = held[r] - share;
    rest -= share;
  }
  for (; rest > 0; --rest) {
    std::size_t most = ranks;
    for (std::size_t r = 0; r < ranks; ++r)
      if (is_rounded[r] && (most == ranks || pages_[r] > pages_[most])) most = r;
    is_rounded[most] = false;
    --pages_[most];
  }
}

bool Surplus::is_uneven() const {
  for (std::size_t r = 0; r < pages_.size(); ++r)
    if (pages_[r] > shares_[r] / 64 || -pages_[r] > shares_[r] / 8) return true;
  return false;
}

std::int64_t Surplus::total() const {
  std::int64_t pages = 0;
  for (const std::int64_t surplus : pages_) pages += std::max<std::int64_t>(surplus, 0);
  return pages;
}

PageRank Surplus::lacking() const {
  return PageRank{static_cast<std::int32_t>(std::ranges::min_element(pages_) - pages_.begin())};
}

}  // namespace kvmesh
