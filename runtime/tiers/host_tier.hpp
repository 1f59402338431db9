// Pages in host memory.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "allocator/prefix/eviction.hpp"
#include "allocator/prefix/prefix_index.hpp"
#include "runtime/tiers/host_memory.hpp"
#include "runtime/tiers/page_copies.hpp"
#include "runtime/tiers/tier.hpp"

namespace kvmesh {

/// Every rank has the index of all ranks' host tiers, and the memory of its own. The index is a
/// deterministic state machine: it depends on the order of calls alone, so all ranks agree without
/// a message. A page is stored by the rank that had it on its device.
///
/// All copies, into slots and out of them, are PageCopies, so a slot is never reused before it was
/// read.
class HostTier final : public Tier {
 public:
  struct Options {
    int ranks = 1;
    PageRank me{};
    std::int64_t pages_per_rank = 0;
    Eviction eviction = Eviction::kHits;
    Device device{};
  };
  /// `below`, which may be null, stores the pages that leave. REQUIRES: all but the options outlive
  /// the tier.
  HostTier(const Options& options, PageCopies& copies, Tier* below);

  TierAnswer lookup(const PageHash& hash) override;
  /// The rank that has the page. REQUIRES: lookup(hash) is kHit.
  PageRank rank_of(const PageHash& hash) const { return rank_of(index_.find(hash)); }
  /// A page that the tier has on another rank leaves that one: it may have no room for it any more.
  TierJob submit_store(const PageHash& hash, const PageSource& from) override;
  /// REQUIRES: `to` is on the page's rank.
  TierJob submit_load(const PageHash& hash, PageId to) override;
  bool wait_for_stores(std::chrono::milliseconds) override {
    copies_.wait_all();
    return true;
  }
  TierCounts counts() const override { return counts_; }

  /// Keeps pages from leaving until they are unpinned. REQUIRES: the tier has them; no page is
  /// pinned twice.
  void pin(std::span<const PageHash> pages);
  void unpin(std::span<const PageHash> pages);
  /// Calls `visit(hash, source)` for each page of this rank.
  void for_each(const std::function<void(const PageHash&, const PageSource&)>& visit) const;

 private:
  PageRank rank_of(PageSlot slot) const {
    return PageRank{static_cast<std::int32_t>(slot / pages_per_rank_)};
  }
  EvictionQueues& queues_of(PageSlot slot) { return queues_[slot / pages_per_rank_]; }
  bool is_mine(PageSlot slot) const { return rank_of(slot) == me_; }
  std::byte* image(PageSlot slot) const {
    return memory_.data() + (slot % pages_per_rank_) * copies_.page_bytes();
  }
  TierJob& written(PageSlot slot) { return written_[slot % pages_per_rank_]; }
  PageSource source(PageSlot slot) const {
    if (!is_mine(slot)) return {.page = {rank_of(slot), 0}};
    return {.bytes = image(slot), .written = written_[slot % pages_per_rank_]};
  }
  PageSlot take_slot(PageRank rank);
  void used(PageSlot slot);

  PageRank me_;
  PageSlot pages_per_rank_;
  PageCopies& copies_;
  Tier* below_;
  PrefixIndex index_;
  EvictionPages pages_;
  std::vector<EvictionQueues> queues_;       // [rank]
  std::vector<PageSlot> filled_;             // [rank] slots that were used at least once
  std::vector<std::vector<PageSlot>> left_;  // [rank] of pages that other ranks have stored since
  HostMemory memory_;                        // [pages_per_rank][page_bytes]
  std::vector<TierJob> written_;             // [pages_per_rank] the copy to this memory
  TierCounts counts_;
};

}  // namespace kvmesh
