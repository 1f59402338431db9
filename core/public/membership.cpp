#include "kvmesh/membership.hpp"

#include "core/check.hpp"

namespace kvmesh {
namespace {

std::vector<Rank> in_order(int ranks) {
  require(ranks > 0, "membership: {} ranks", ranks);
  std::vector<Rank> holders;
  for (Rank rank{0}; rank.value < ranks; ++rank.value) holders.push_back(rank);
  return holders;
}

}  // namespace

Membership::Membership(int ranks) : Membership(0, in_order(ranks)) {}

Membership::Membership(std::uint64_t epoch, std::vector<Rank> holders)
    : epoch_(epoch), holders_(std::move(holders)), page_ranks_(holders_.size(), PageRank{-1}) {
  require(!holders_.empty(), "membership: no ranks");
  for (PageRank pages{0}; pages.value < size(); ++pages.value) {
    const Rank rank = holder(pages);
    require(rank.value >= 0 && rank.value < size(), "membership: rank {} among {} ranks",
            rank.value, size());
    PageRank& held = page_ranks_[static_cast<std::size_t>(rank.value)];
    require(held.value < 0, "membership: rank {} holds the pages of page ranks {} and {}",
            rank.value, held.value, pages.value);
    held = pages;
  }
}

}  // namespace kvmesh
