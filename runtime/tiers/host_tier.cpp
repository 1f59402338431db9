#include "runtime/tiers/host_tier.hpp"

namespace kvmesh {

HostTier::HostTier(const Options& options, PageCopies& copies, Tier* below)
    : me_(options.me),
      pages_per_rank_(static_cast<PageSlot>(options.pages_per_rank)),
      copies_(copies),
      below_(below),
      index_(static_cast<PageSlot>(options.ranks) * pages_per_rank_, 0),
      pages_(options.eviction, static_cast<PageSlot>(options.ranks) * pages_per_rank_),
      queues_(static_cast<std::size_t>(options.ranks),
              EvictionQueues(options.eviction, options.pages_per_rank)),
      filled_(static_cast<std::size_t>(options.ranks)),
      left_(static_cast<std::size_t>(options.ranks)),
      memory_(options.device, pages_per_rank_ * copies.page_bytes()),
      written_(pages_per_rank_) {}

TierAnswer HostTier::lookup(const PageHash& hash) {
  return index_.find(hash) == kNoSlot ? TierAnswer::kMiss : TierAnswer::kHit;
}

/// The page moves to its place in the queues. REQUIRES: it is in none.
void HostTier::used(PageSlot slot) { queues_of(slot).released(pages_, slot); }

/// Returns kNoSlot if all pages of the rank are pinned.
PageSlot HostTier::take_slot(PageRank rank) {
  const auto at = static_cast<std::size_t>(rank.value);
  if (!left_[at].empty()) {
    const PageSlot slot = left_[at].back();
    left_[at].pop_back();
    return slot;
  }
  if (filled_[at] < pages_per_rank_)
    return static_cast<PageSlot>(rank.value) * pages_per_rank_ + filled_[at]++;
  if (queues_[at].size() == 0) return kNoSlot;
  const PageSlot slot = queues_[at].victim(pages_);
  if (below_ != nullptr) below_->submit_store(index_.hash(slot), source(slot));
  if (is_mine(slot)) {
    ++counts_.removed;
    --counts_.pages;
  }
  queues_[at].evicted(pages_, slot, index_.hash(slot));
  index_.erase(slot);
  return slot;
}

TierJob HostTier::submit_store(const PageHash& hash, const PageSource& from) {
  if (const PageSlot known = index_.find(hash); known != kNoSlot) {
    queues_of(known).taken(pages_, known);
    if (rank_of(known) == from.page.rank()) {
      used(known);
      return job_done();
    }
    index_.erase(known);
    left_[static_cast<std::size_t>(rank_of(known).value)].push_back(known);
    counts_.pages -= is_mine(known);
  }
  const PageSlot slot = take_slot(from.page.rank());
  if (slot == kNoSlot) {
    counts_.drops += from.page.rank() == me_;
    return job_done(false);
  }
  index_.insert(slot, hash, kNoSlot, {}, true);
  queues_of(slot).added(pages_, slot, hash, false);
  used(slot);
  if (!is_mine(slot)) return job_done();
  ++counts_.stores;
  ++counts_.pages;
  return written(slot) = copies_.pack(from.page.index(), image(slot));
}

TierJob HostTier::submit_load(const PageHash& hash, PageId to) {
  const PageSlot slot = index_.find(hash);
  if (!is_mine(slot)) return job_done();
  ++counts_.loads;
  return copies_.unpack(image(slot), to.index());
}

void HostTier::pin(std::span<const PageHash> pages) {
  for (const PageHash& hash : pages) {
    const PageSlot slot = index_.find(hash);
    queues_of(slot).taken(pages_, slot);
  }
}

void HostTier::unpin(std::span<const PageHash> pages) {
  // From the end: children leave before their parents, without which they are no hits.
  for (std::size_t i = pages.size(); i-- > 0;) {
    const PageSlot slot = index_.find(pages[i]);
    queues_of(slot).hit(pages_, slot);
    used(slot);
  }
}

void HostTier::for_each(
    const std::function<void(const PageHash&, const PageSource&)>& visit) const {
  const PageSlot first = static_cast<PageSlot>(me_.value) * pages_per_rank_;
  for (PageSlot slot = first; slot < first + pages_per_rank_; ++slot)
    if (index_.contains(slot)) visit(index_.hash(slot), source(slot));
}

}  // namespace kvmesh
