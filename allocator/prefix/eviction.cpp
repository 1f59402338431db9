#include "allocator/prefix/eviction.hpp"

#include <algorithm>

namespace kvmesh {
namespace {

constexpr std::uint8_t kMostHits = 3;  // as in S3-FIFO: two bits

/// kHits: because of its hits, a page counts as used more recently, by this many tenths of the
/// rank's pages.
constexpr std::uint64_t kCreditTenths[kMostHits + 1] = {0, 6, 8, 9};

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

}  // namespace

EvictionQueues::EvictionQueues(Eviction policy, std::int64_t pages) : policy_(policy) {
  resize(pages);
}

void EvictionQueues::resize(std::int64_t pages) {
  pages_ = static_cast<std::uint64_t>(pages);
  share_ = static_cast<std::int64_t>(static_cast<double>(pages) * share_of(policy_));
}

void EvictionQueues::added(EvictionPages::Page& page, bool returns) {
  ++published_;
  page.hits = returns ? 1 : 0;
  if (policy_ == Eviction::kS3Fifo) page.hits = 0;
  page.queue = returns && policy_ != Eviction::kLru && policy_ != Eviction::kSegmented ? 1 : 0;
}

void EvictionQueues::hit(EvictionPages::Page& page) const {
  page.hits = std::min<std::uint8_t>(page.hits + 1, kMostHits);
  if (policy_ == Eviction::kTwoQueues || policy_ == Eviction::kSegmented) page.queue = 1;
  if (policy_ == Eviction::kHits) page.queue = page.hits;
}

void EvictionQueues::released(EvictionPages& all, PageSlot slot) {
  all.pages[slot].last_use = published_;
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
  if (policy_ == Eviction::kHits) return least_credit(all);
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
PageSlot EvictionQueues::least_credit(const EvictionPages& all) const {
  PageSlot best = kNoSlot;
  std::uint64_t best_use = 0;
  for (std::size_t hits = 0; hits <= kMostHits; ++hits) {
    const PageSlot first = queues_[hits].first;
    if (first == kNoSlot) continue;
    const std::uint64_t use = all.pages[first].last_use + kCreditTenths[hits] * pages_ / 10;
    if (best == kNoSlot || use < best_use) {
      best = first;
      best_use = use;
    }
  }
  return best;
}

bool EvictionQueues::remembers(const EvictionPages::Page& page) const {
  return policy_ == Eviction::kHits ||
         (page.queue == 0 && (policy_ == Eviction::kTwoQueues || policy_ == Eviction::kS3Fifo));
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

}  // namespace kvmesh
