// The map from page ranks to the ranks of a communicator that hold their pages.
#pragma once

#include <cstdint>
#include <vector>

#include "kvmesh/api.h"
#include "kvmesh/types.hpp"

namespace KVMESH_API kvmesh {

/// Joins the two kinds of rank: page tables name page ranks and never change when processes do;
/// messages go to ranks of the kv communicator. Every rank holds the pages of one page rank.
/// Immutable: a change of members is another object, of a higher epoch.
class Membership {
 public:
  /// Epoch 0, in which rank r holds the pages of page rank r.
  explicit Membership(int ranks);
  /// `holders[p]` holds the pages of page rank p.
  /// @throws InvalidArgument unless every rank from 0 to holders.size() - 1 is there once.
  Membership(std::uint64_t epoch, std::vector<Rank> holders);

  /// Number of changes of members before this one.
  std::uint64_t epoch() const { return epoch_; }
  /// The number of page ranks; the communicator has as many ranks.
  int size() const { return static_cast<int>(holders_.size()); }
  /// REQUIRES: the argument is at least 0 and below size().
  Rank holder(PageRank pages) const { return holders_[static_cast<std::size_t>(pages.value)]; }
  PageRank page_rank(Rank holder) const {
    return page_ranks_[static_cast<std::size_t>(holder.value)];
  }

  friend bool operator==(const Membership&, const Membership&) = default;

 private:
  std::uint64_t epoch_ = 0;
  std::vector<Rank> holders_;         // [page rank]
  std::vector<PageRank> page_ranks_;  // [rank]
};

}  // namespace kvmesh
