#include "allocator/page_pools.hpp"

namespace kvmesh {

PagePools::PagePools(int ranks, std::int64_t pages_per_rank)
    : pages_per_rank_(pages_per_rank),
      free_total_(ranks * pages_per_rank),
      heads_(static_cast<std::size_t>(ranks), 0),
      free_counts_(heads_.size(), static_cast<std::int32_t>(pages_per_rank)),
      listed_(free_counts_),
      links_(static_cast<std::size_t>(free_total_)),
      generations_(links_.size(), 0) {
  const auto last = static_cast<std::int32_t>(pages_per_rank) - 1;
  for (int rank = 0; rank < ranks; ++rank) {
    std::int32_t* links = links_.data() + at(PageId{PageRank{rank}, 0});
    for (std::int32_t index = 0; index < last; ++index) links[index] = ~(index + 1);
    links[last] = ~kEnd;
  }
}

std::vector<std::int64_t> PagePools::free_pages_per_rank() const {
  return {free_counts_.begin(), free_counts_.end()};
}

}  // namespace kvmesh
