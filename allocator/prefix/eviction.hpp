// The order in which cached pages are evicted: one interface, five policies.
#pragma once

#include <cstdint>
#include <vector>

#include "allocator/prefix/ghosts.hpp"
#include "allocator/prefix/prefix_index.hpp"
#include "allocator/prefix/reuse_times.hpp"

namespace kvmesh {

/// The data that the queues of all ranks and priorities share.
struct EvictionPages {
  struct Page {
    PageSlot next = kNoSlot, previous = kNoSlot;
    std::uint64_t last_use = 0;  // pages published before it was last published, hit or released
    std::uint8_t queue = 0;      // the queue of the page, also while sequences hold it
    std::uint8_t hits = 0;       // up to 3
    bool is_end = false;         // no page has continued it
    std::uint8_t priority = 0;   // 0 to 100
    std::uint32_t stamp = 0;     // of the end of its priority; 0: none
  };
  /// `count` is the number of pages of all ranks.
  EvictionPages(Eviction policy, PageSlot count);
  /// For an owner that adds its pages, about `count`, to `pages` as they come; `pages` is empty at
  /// first.
  EvictionPages(Eviction policy, PageSlot count, std::uint64_t most_ghosts);

  std::vector<Page> pages;  // [slot]
  Ghosts ghosts;
  ReuseTimes times;
};

/// The order of one rank's pages of one priority. Its queues hold the pages that no sequence holds.
/// The order follows from the order of calls alone. No function allocates or throws.
class EvictionQueues {
 public:
  /// `pages` is the number of pages of the rank.
  EvictionQueues(Eviction policy, std::int64_t pages);
  void resize(std::int64_t pages);

  /// Adds a page that is new in the index. `may_continue`: continued() may be called for it.
  void added(EvictionPages& all, PageSlot slot, const PageHash& hash, bool may_continue);
  /// A new page continues the page. REQUIRES: it is in no queue.
  void continued(EvictionPages& all, PageSlot slot) const;
  /// A lookup found the page. REQUIRES: it is in no queue.
  void hit(EvictionPages& all, PageSlot slot) const;
  /// Raises the page's hits to `hits`, the number of a page that continues it: those were hits of
  /// this page, too, even if its ghost was forgotten. Returns whether it had fewer. REQUIRES: it is
  /// in no queue.
  bool hit_at_least(EvictionPages& all, PageSlot slot, int hits) const;
  /// The last sequence left the page.
  void released(EvictionPages& all, PageSlot slot);
  /// A sequence takes the page.
  void taken(EvictionPages& all, PageSlot slot);
  /// Returns the page to evict. REQUIRES: size() > 0.
  PageSlot victim(EvictionPages& all);
  /// Removes an evicted page from its queue.
  void evicted(EvictionPages& all, PageSlot slot, const PageHash& hash);
  /// The kind of page of the default order, which is also its queue.
  static int kind(const EvictionPages::Page& page) {
    return page.is_end && page.hits == 0 ? ReuseTimes::kEnd : page.hits;
  }
  std::int64_t size() const {
    return queues_[0].size + queues_[1].size + queues_[2].size + queues_[3].size + queues_[4].size;
  }

 private:
  struct Queue {
    PageSlot first = kNoSlot, last = kNoSlot;
    std::int64_t size = 0;
  };
  bool raise_hits(EvictionPages::Page& page, int hits) const;
  void push(EvictionPages& all, PageSlot slot);
  void remove(EvictionPages& all, PageSlot slot);
  PageSlot second_chances(EvictionPages& all);
  PageSlot used_least(const EvictionPages& all) const;

  Eviction policy_;
  std::int64_t share_ = 0;  // of queue 0 (2Q, S3-FIFO) or of queue 1 (segmented)
  Queue queues_[5];
};

}  // namespace kvmesh
