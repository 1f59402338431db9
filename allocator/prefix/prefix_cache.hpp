// Keeps the pages of known prefixes when no sequence holds them, until their room is needed.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "allocator/pages/change_log.hpp"
#include "allocator/pages/page_pools.hpp"
#include "allocator/prefix/eviction.hpp"
#include "allocator/prefix/prefix_index.hpp"
#include "allocator/prefix/priority_ends.hpp"
#include "kvmesh/allocator.hpp"

namespace kvmesh {

/// The pages that a lookup found.
struct PrefixRun {
  std::span<const PageSlot> pages{};  ///< valid until the next lookup; the last may be partial
  std::int64_t tokens = 0;
  std::size_t first = 0;  ///< logical number of the first page: those before it are not needed
};

/// A priority, and the operation after which it is Retention::kPriority; 0: none.
struct Keeping {
  int priority = Retention::kPriority;
  std::uint64_t ends = 0;
};

/// The published pages of all ranks: index, tokens and order of eviction. A published page is never
/// written. A sequence that holds a page holds its parent, too, so the cached pages (published, and
/// held by no sequence) are whole subtrees: all of them can be evicted, leaves first. With a
/// window, a sequence may have given up the pages before one that it holds: pages have no parents
/// then, and each is evicted alone. So are states (AllocatorOptions::state_interval).
class PrefixCache final : public PageKeeper {
 public:
  PrefixCache(const AllocatorOptions& options, PagePools& pools, EvictionLog& evictions);

  /// Finds the longest published run of the key with at most `most` tokens, its last, partly equal
  /// page included. With a window, the run has whole pages, and only those that the next query
  /// sees; with states, only the state of all of the run's tokens.
  PrefixRun find(const PrefixKey& key, std::int64_t most);
  /// Counts a hit of pages that a sequence has just taken.
  void hit(std::span<const PageSlot> pages);
  void hit(PageId page) { queues_of(slot(page)).hit(pages_, slot(page)); }

  PageSlot find(const PageHash& hash) const { return index_.find(hash); }
  const PageHash& hash(PageId page) const { return index_.hash(slot(page)); }
  /// Allocates the memory that publish() of this priority needs.
  void prepare(int priority);
  /// Makes room for the ends of priorities, for this many pages. Allocates.
  void prepare_ends(std::size_t pages);
  /// The number of operations so far.
  void set_operations(std::uint64_t operations) { operations_ = operations; }
  /// Publishes a page that a sequence holds. `parent` is invalid for a first page.
  void publish(PageId page, const PageHash& hash, PageId parent,
               std::span<const std::int32_t> tokens, bool whole, const Keeping& keeping);
  /// Raises the priority of a published page that a sequence holds; an equal one gets the new end.
  void raise(PageId page, const Keeping& keeping);

  PageId page(PageSlot slot) const {
    return {PageRank{static_cast<std::int32_t>(slot / pages_per_rank_)},
            static_cast<std::int32_t>(slot % pages_per_rank_)};
  }
  const PrefixIndex& index() const { return index_; }
  PageSlot slot(PageId page) const {
    return static_cast<PageSlot>(page.rank().value) * pages_per_rank_ +
           static_cast<PageSlot>(page.index());
  }

  /// The hits of a page in the index. With kHits, its parent has as many or more.
  int hits(PageSlot slot) const { return pages_.pages[slot].hits; }
  const EvictionPages& eviction() const { return pages_; }
  bool counts_hits() const { return options_.eviction == Eviction::kHits; }

  /// Returns whether pages have parents.
  bool is_tree() const { return window_ == 0 && !has_states_; }
  /// Returns the published page before this one; an invalid page if there is none.
  PageId parent(PageId page) const {
    const PageSlot parent = index_.parent(slot(page));
    return parent == kNoSlot ? PageId{} : this->page(parent);
  }
  /// Returns the rank's cached pages from index `first` on, by falling priority, and among equal
  /// priorities the most recently used first.
  std::vector<PageId> cached_past(PageRank rank, std::int64_t first) const;

  /// Returns all published pages, in the order of their ids.
  std::vector<PageId> published() const;

  /// Returns the number of pages in all queues.
  std::int64_t evictable() const;

  void released(PageId page) override;
  void taken(PageId page) override;
  void evict_one(PageRank rank) override;

  /// Evicts the rank's cached pages from index `first` on, and their descendants on all ranks.
  void evict_past(PageRank rank, std::int64_t first);
  /// Adapts to another size of the rank's pool.
  void resized(PageRank rank);
  /// Moves an entry: the content of page `from` is now in page `to`. REQUIRES: sequences hold both.
  void moved(PageId from, PageId to);
  /// Call it after all moved() of an operation: `target` returns where a page has moved, or an
  /// invalid page.
  void all_moved(const std::function<PageId(PageId)>& target);

 private:
  using Ranks = std::vector<EvictionQueues>;  // [rank]
  EvictionQueues& queues_of(PageSlot slot) {
    return (*by_priority_[pages_.pages[slot].priority])[slot / pages_per_rank_];
  }
  void evict(PageSlot leaf);
  void count_pages();
  void set_end(PageSlot slot, const Keeping& keeping);
  void end_priority(PageSlot slot, std::uint32_t stamp);
  template <class Until>
  void evict_leaves(PageSlot root, const Until& until);
  bool has_tokens(PageSlot slot, const PrefixKey& key, std::size_t logical) const;
  PrefixRun find_window(const PrefixKey& key, std::size_t most_pages);
  PrefixRun find_state(const PrefixKey& key, std::size_t most_pages);

  PrefixOptions options_;
  std::int64_t window_;
  bool has_states_;
  PageSlot pages_per_rank_;
  std::size_t page_size_;  // of keys
  PagePools& pools_;
  EvictionLog& evictions_;
  PrefixIndex index_;
  EvictionPages pages_;
  std::array<std::unique_ptr<Ranks>, 101> by_priority_;  // null: never used
  PriorityEnds ends_;
  std::uint64_t operations_ = 0;
  std::vector<PageSlot> found_;  // of the last lookup
};

}  // namespace kvmesh
