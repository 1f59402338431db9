#include "allocator/prefix/eviction.hpp"

#include <algorithm>
#include <cstring>

namespace kvmesh {
namespace {

constexpr std::uint8_t kMostHits = 3;  // as in S3-FIFO: two bits

/// The share of a rank's pages that the policy's limited queue may have.
double share_of(Eviction policy) {
  switch (policy) {
    case Eviction::kTwoQueues:
      return 0.3;
    case Eviction::kS3Fifo:
      return 0.1;
    case Eviction::kSegmented:
      return 0.8;
    case Eviction::kHits:
    case Eviction::kLru:
      return 0;
  }
  return 0;
}

/// The evicted pages that the policy remembers for each page of the pool.
std::uint64_t ghosts_of(Eviction policy) {
  switch (policy) {
    case Eviction::kHits:
      return ReuseTimes::kGhostsOfPage;
    case Eviction::kTwoQueues:
    case Eviction::kS3Fifo:
      return 4;
    case Eviction::kLru:
    case Eviction::kSegmented:
      return 0;
  }
  return 0;
}

std::uint64_t word(const PageHash& hash) {
  std::uint64_t word;
  std::memcpy(&word, hash.bytes.data(), sizeof word);
  return word;
}

}  // namespace

EvictionPages::EvictionPages(Eviction policy, PageSlot count)
    : pages(count), ghosts(ghosts_of(policy) * count), times(count) {}

EvictionPages::EvictionPages(Eviction policy, PageSlot count, std::uint64_t most_ghosts)
    : ghosts(std::min(ghosts_of(policy) * count, most_ghosts)), times(count) {}

EvictionQueues::EvictionQueues(Eviction policy, std::int64_t pages) : policy_(policy) {
  resize(pages);
}

void EvictionQueues::resize(std::int64_t pages) {
  share_ = static_cast<std::int64_t>(static_cast<double>(pages) * share_of(policy_));
}

void EvictionQueues::added(EvictionPages& all, PageSlot slot, const PageHash& hash,
                           bool may_continue) {
  EvictionPages::Page& page = all.pages[slot];
  const std::optional<Ghost> ghost = all.ghosts.take(word(hash));
  all.times.published();
  page.last_use = all.times.now();
  page.hits = page.queue = 0;
  page.is_end = may_continue;
  if (policy_ != Eviction::kHits) {
    page.queue = ghost ? 1 : 0;
    return;
  }
  const int before = !ghost ? 0 : ghost->is_end ? ReuseTimes::kEnd : static_cast<int>(ghost->hits);
  if (ghost && all.times.ended(before, (page.last_use - ghost->time) % Ghost::kTimes))
    raise_hits(page, static_cast<int>(ghost->hits) + 1);
  page.queue = static_cast<std::uint8_t>(kind(page));
  all.times.started(kind(page));
}

void EvictionQueues::continued(EvictionPages& all, PageSlot slot) const {
  EvictionPages::Page& page = all.pages[slot];
  const int before = kind(page);
  page.is_end = false;
  if (policy_ != Eviction::kHits || kind(page) == before) return;
  page.queue = page.hits;
  all.times.changed(before, page.hits, page.last_use);
}

void EvictionQueues::hit(EvictionPages& all, PageSlot slot) const {
  EvictionPages::Page& page = all.pages[slot];
  if (policy_ == Eviction::kHits) {
    all.times.ended(kind(page), all.times.now() - page.last_use);
    raise_hits(page, page.hits + 1);
    all.times.started(kind(page));
  } else {
    page.hits = std::min<std::uint8_t>(page.hits + 1, kMostHits);
    if (policy_ != Eviction::kLru && policy_ != Eviction::kS3Fifo) page.queue = 1;
  }
  page.last_use = all.times.now();
}

bool EvictionQueues::hit_at_least(EvictionPages& all, PageSlot slot, int hits) const {
  EvictionPages::Page& page = all.pages[slot];
  const int before = kind(page);
  if (!raise_hits(page, hits)) return false;
  all.times.changed(before, kind(page), page.last_use);
  return true;
}

/// Used by the default order alone. Returns whether the page had fewer hits.
bool EvictionQueues::raise_hits(EvictionPages::Page& page, int hits) const {
  hits = std::min(hits, ReuseTimes::kMostHits);
  if (policy_ != Eviction::kHits || page.hits >= hits) return false;
  page.hits = static_cast<std::uint8_t>(hits);
  page.queue = static_cast<std::uint8_t>(kind(page));
  return true;
}

void EvictionQueues::released(EvictionPages& all, PageSlot slot) {
  EvictionPages::Page& page = all.pages[slot];
  if (policy_ == Eviction::kHits) all.times.released(kind(page), page.last_use);
  page.last_use = all.times.now();
  push(all, slot);
  if (policy_ != Eviction::kSegmented) return;
  while (queues_[1].size > share_) {
    const PageSlot demoted = queues_[1].first;
    remove(all, demoted);
    all.pages[demoted].queue = 0;
    push(all, demoted);
  }
}

void EvictionQueues::taken(EvictionPages& all, PageSlot slot) { remove(all, slot); }

PageSlot EvictionQueues::victim(EvictionPages& all) {
  if (policy_ == Eviction::kS3Fifo) return second_chances(all);
  if (policy_ == Eviction::kHits) return used_least(all);
  const bool newest = policy_ == Eviction::kTwoQueues && queues_[0].size <= share_;
  const Queue& first = queues_[newest ? 1 : 0];
  return first.size > 0 ? first.first : queues_[newest ? 0 : 1].first;
}

/// S3-FIFO: a hit page of the small queue moves to the main one, where each hit is one more turn.
PageSlot EvictionQueues::second_chances(EvictionPages& all) {
  for (;;) {
    const bool small = queues_[1].size == 0 || (queues_[0].size > 0 && queues_[0].size > share_);
    const PageSlot slot = queues_[small ? 0 : 1].first;
    EvictionPages::Page& page = all.pages[slot];
    if (page.hits == 0) return slot;
    remove(all, slot);
    page.hits = small ? 0 : static_cast<std::uint8_t>(page.hits - 1);
    page.queue = 1;
    push(all, slot);
  }
}

/// Within a queue the order is that of the last use, so only the first of each queue is compared.
PageSlot EvictionQueues::used_least(const EvictionPages& all) const {
  PageSlot best = kNoSlot;
  std::int64_t best_use = 0;
  for (int kind = 0; kind <= ReuseTimes::kEnd; ++kind) {
    const PageSlot first = queues_[kind].first;
    if (first == kNoSlot) continue;
    const std::int64_t use =
        static_cast<std::int64_t>(all.pages[first].last_use) + all.times.credit(kind);
    if (best == kNoSlot || use < best_use) {
      best = first;
      best_use = use;
    }
  }
  return best;
}

void EvictionQueues::evicted(EvictionPages& all, PageSlot slot, const PageHash& hash) {
  remove(all, slot);
  const EvictionPages::Page& page = all.pages[slot];
  if (page.queue > 0 && policy_ != Eviction::kHits) return;
  Ghost ghost;
  ghost.hits = page.hits & 3;
  ghost.is_end = kind(page) == ReuseTimes::kEnd ? 1 : 0;
  ghost.time = static_cast<std::uint32_t>(page.last_use % Ghost::kTimes);
  all.ghosts.add(word(hash), ghost);
}

void EvictionQueues::push(EvictionPages& all, PageSlot slot) {
  EvictionPages::Page& page = all.pages[slot];
  Queue& queue = queues_[page.queue];
  page.next = kNoSlot;
  page.previous = queue.last;
  (queue.last == kNoSlot ? queue.first : all.pages[queue.last].next) = slot;
  queue.last = slot;
  ++queue.size;
}

void EvictionQueues::remove(EvictionPages& all, PageSlot slot) {
  EvictionPages::Page& page = all.pages[slot];
  Queue& queue = queues_[page.queue];
  (page.previous == kNoSlot ? queue.first : all.pages[page.previous].next) = page.next;
  (page.next == kNoSlot ? queue.last : all.pages[page.next].previous) = page.previous;
  --queue.size;
}

std::string_view name(Eviction eviction) {
  switch (eviction) {
    case Eviction::kHits:
      return "hits";
    case Eviction::kTwoQueues:
      return "2q";
    case Eviction::kLru:
      return "lru";
    case Eviction::kS3Fifo:
      return "s3fifo";
    case Eviction::kSegmented:
      return "segmented";
  }
  return "unknown";
}

}  // namespace kvmesh
