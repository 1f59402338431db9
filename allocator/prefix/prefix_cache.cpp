#include "allocator/prefix/prefix_cache.hpp"

#include <algorithm>
#include <functional>
#include <tuple>
#include <utility>

namespace kvmesh {

PrefixCache::PrefixCache(const AllocatorOptions& options, PagePools& pools, EvictionLog& evictions)
    : options_(options.prefix),
      window_(options.window),
      has_states_(options.state_interval > 0),
      pages_per_rank_(static_cast<PageSlot>(pools.pages_per_rank())),
      page_size_(
          static_cast<std::size_t>(has_states_ ? options.state_interval : options.page_size)),
      pools_(pools),
      evictions_(evictions),
      index_(static_cast<PageSlot>(pools.ranks() * pools.pages_per_rank()),
             static_cast<int>(page_size_)),
      pages_(options_.eviction, static_cast<PageSlot>(pools.ranks() * pools.pages_per_rank())) {
  pools_.keep_with(this);
  count_pages();
}

bool PrefixCache::has_tokens(PageSlot slot, const PrefixKey& key, std::size_t logical) const {
  return !options_.compares_tokens ||
         std::ranges::equal(index_.tokens(slot),
                            key.tokens().subspan(logical * page_size_, page_size_));
}

PrefixRun PrefixCache::find(const PrefixKey& key, std::int64_t most) {
  const std::span<const std::int32_t> tokens =
      key.tokens().first(std::min(key.tokens().size(), static_cast<std::size_t>(most)));
  const std::size_t full = std::min(key.hashes().size(), tokens.size() / page_size_);
  found_.resize(std::max(found_.size(), full + 1));
  if (window_ > 0) return find_window(key, full);
  if (has_states_) return find_state(key, full);
  std::size_t pages = index_.find_run(key.hashes().first(full), found_);
  for (std::size_t i = 0; options_.compares_tokens && i < pages; ++i) {
    if (!has_tokens(found_[i], key, i)) pages = i;
  }
  auto length = static_cast<std::int64_t>(pages * page_size_);
  if (pages > 0 && !key.has_items(static_cast<std::int64_t>(pages))) {
    const std::span<const std::int32_t> rest = tokens.subspan(pages * page_size_);
    const PrefixIndex::Partial partial = index_.longest_partial(found_[pages - 1], rest);
    if (partial.tokens > 0) found_[pages++] = partial.slot;
    length += partial.tokens;
  }
  return {.pages = std::span(found_).first(pages), .tokens = length};
}

/// Looks from the end for as many pages in a row as a window needs: the query after a run of n
/// pages sees window - 1 positions of them.
PrefixRun PrefixCache::find_window(const PrefixKey& key, std::size_t most_pages) {
  const std::size_t needed = (static_cast<std::size_t>(window_) - 1 + page_size_ - 1) / page_size_;
  std::size_t end = most_pages, first = end;
  while (first > 0 && end - first < needed) {
    const PageSlot slot = index_.find(key.hashes()[first - 1]);
    if (slot == kNoSlot || !has_tokens(slot, key, first - 1)) {
      end = --first;
    } else {
      found_[--first] = slot;
    }
  }
  return {.pages = std::span(found_).subspan(first, end - first),
          .tokens = static_cast<std::int64_t>(end * page_size_),
          .first = first};
}

/// Looks from the end for pages after which there is a state.
PrefixRun PrefixCache::find_state(const PrefixKey& key, std::size_t most_pages) {
  for (std::size_t pages = most_pages; pages > 0; --pages) {
    const PageSlot slot = index_.find(key.hashes()[pages - 1]);
    if (slot == kNoSlot || !has_tokens(slot, key, pages - 1)) continue;
    found_[0] = slot;
    return {.pages = std::span(found_).first(1),
            .tokens = static_cast<std::int64_t>(pages * page_size_)};
  }
  return {};
}

void PrefixCache::hit(std::span<const PageSlot> pages) {
  for (const PageSlot slot : pages) queues_of(slot).hit(pages_, slot);
}

void PrefixCache::prepare(int priority) {
  std::unique_ptr<Ranks>& ranks = by_priority_[static_cast<std::size_t>(priority)];
  if (ranks) return;
  ranks = std::make_unique<Ranks>();
  for (PageRank rank{0}; rank.value < pools_.ranks(); ++rank.value)
    ranks->emplace_back(options_.eviction, pools_.size(rank));
}

void PrefixCache::publish(PageId page, const PageHash& hash, PageId parent,
                          std::span<const std::int32_t> tokens, bool whole,
                          const Keeping& keeping) {
  const PageSlot at = slot(page);
  const bool has_parent = parent.valid() && is_tree();
  index_.insert(at, hash, has_parent ? slot(parent) : kNoSlot, tokens, whole);
  pages_.pages[at].priority = static_cast<std::uint8_t>(keeping.priority);
  set_end(at, keeping);
  queues_of(at).added(pages_, at, hash, is_tree());
  const int hits = pages_.pages[at].hits;
  PageSlot before = index_.parent(at);
  if (before != kNoSlot) queues_of(before).continued(pages_, before);
  while (before != kNoSlot && queues_of(before).hit_at_least(pages_, before, hits))
    before = index_.parent(before);
  pools_.keep(page);
}

void PrefixCache::raise(PageId page, const Keeping& keeping) {
  EvictionPages::Page& now = pages_.pages[slot(page)];
  if (keeping.priority < now.priority) return;
  now.priority = static_cast<std::uint8_t>(keeping.priority);
  set_end(slot(page), keeping);
}

void PrefixCache::prepare_ends(std::size_t pages) {
  ends_.prepare(pages, [this](PageSlot slot) { return pages_.pages[slot].stamp; });
}

void PrefixCache::set_end(PageSlot slot, const Keeping& keeping) {
  pages_.pages[slot].stamp = keeping.ends == 0 ? 0 : ends_.add(slot, keeping.ends);
}

void PrefixCache::end_priority(PageSlot slot, std::uint32_t stamp) {
  EvictionPages::Page& page = pages_.pages[slot];
  if (page.stamp != stamp) return;
  const bool is_queued = pools_.is_cached(this->page(slot));
  if (is_queued) queues_of(slot).taken(pages_, slot);
  page.stamp = 0;
  page.priority = Retention::kPriority;
  if (is_queued) queues_of(slot).released(pages_, slot);
}

std::vector<PageId> PrefixCache::cached_past(PageRank rank, std::int64_t first) const {
  std::vector<PageId> pages;
  for (auto index = static_cast<std::int32_t>(first); index < pools_.size(rank); ++index)
    if (pools_.is_cached({rank, index})) pages.emplace_back(rank, index);
  const auto use = [this](PageId it) {
    const EvictionPages::Page& page = pages_.pages[slot(it)];
    return std::tuple(page.priority, page.last_use, it);
  };
  std::ranges::sort(pages, std::greater{}, use);
  return pages;
}

std::vector<PageId> PrefixCache::published() const {
  std::vector<PageId> pages;
  for (PageSlot slot = 0; slot < pages_.pages.size(); ++slot)
    if (index_.contains(slot)) pages.push_back(page(slot));
  return pages;
}

std::int64_t PrefixCache::evictable() const {
  std::int64_t pages = 0;
  for (const auto& ranks : by_priority_)
    for (std::size_t rank = 0; ranks && rank < ranks->size(); ++rank)
      pages += (*ranks)[rank].size();
  return pages;
}

void PrefixCache::released(PageId page) { queues_of(slot(page)).released(pages_, slot(page)); }

void PrefixCache::taken(PageId page) { queues_of(slot(page)).taken(pages_, slot(page)); }

void PrefixCache::evict_one(PageRank rank) {
  ends_.end_until(operations_,
                  [this](PageSlot slot, std::uint32_t stamp) { end_priority(slot, stamp); });
  const auto at = static_cast<std::size_t>(rank.value);
  const auto lowest = std::ranges::find_if(
      by_priority_, [at](const auto& ranks) { return ranks && (*ranks)[at].size() > 0; });
  const PageSlot victim = (**lowest)[at].victim(pages_);
  evict_leaves(victim, [&](PageSlot leaf) { return page(leaf).rank() == rank; });
}

/// Evicts the descendants of a cached page, which are cached, too, and then the page, until
/// `until(evicted)`.
template <class Until>
void PrefixCache::evict_leaves(PageSlot root, const Until& until) {
  for (PageSlot leaf = root;;) {
    while (index_.first_child(leaf) != kNoSlot) leaf = index_.first_child(leaf);
    const PageSlot parent = index_.parent(leaf);
    evict(leaf);
    if (until(leaf)) return;
    leaf = parent;
  }
}

void PrefixCache::evict_past(PageRank rank, std::int64_t first) {
  for (auto index = static_cast<std::int32_t>(first); index < pools_.size(rank); ++index) {
    const PageSlot root = slot({rank, index});
    if (!pools_.is_cached(page(root))) continue;
    evict_leaves(root, [root](PageSlot leaf) { return leaf == root; });
  }
}

void PrefixCache::resized(PageRank rank) {
  for (const auto& ranks : by_priority_)
    if (ranks) (*ranks)[static_cast<std::size_t>(rank.value)].resize(pools_.size(rank));
  count_pages();
}

void PrefixCache::count_pages() {
  std::int64_t pages = 0;
  for (PageRank rank{0}; rank.value < pools_.ranks(); ++rank.value) pages += pools_.size(rank);
  pages_.times.resize(pages);
}

void PrefixCache::moved(PageId from, PageId to) {
  index_.move(slot(from), slot(to));
  pages_.pages[slot(to)] = pages_.pages[slot(from)];
  pages_.pages[slot(from)].stamp = 0;
  pools_.keep_instead(from, to);
}

void PrefixCache::all_moved(const std::function<PageId(PageId)>& target) {
  ends_.move([&](PageSlot from) {
    const PageId to = target(page(from));
    return to.valid() ? slot(to) : from;
  });
}

void PrefixCache::evict(PageSlot leaf) {
  queues_of(leaf).evicted(pages_, leaf, index_.hash(leaf));
  pages_.pages[leaf].stamp = 0;
  index_.erase(leaf);
  pools_.free_cached(page(leaf));
  evictions_.record(page(leaf));
}

}  // namespace kvmesh
