#include <map>
#include <utility>

#include "allocator/integrity.hpp"
#include "core/check.hpp"

namespace kvmesh {
namespace {

template <class... Args>
void ensure(bool ok, fmt::format_string<Args...> message, Args&&... args) {
  if (!ok) throw Error("prefix integrity: " + fmt::format(message, std::forward<Args>(args)...));
}

void check_page(const PagePools& pools, const PrefixCache& prefixes, PageId page) {
  const PrefixIndex& index = prefixes.index();
  const PageSlot slot = prefixes.slot(page);
  ensure(index.contains(slot) == pools.is_kept(page),
         "page {}:{} is either kept or in the index, not both", page.rank().value, page.index());
  if (!index.contains(slot)) return;
  ensure(index.find(index.hash(slot)) == slot, "page {}:{} is not found by its hash",
         page.rank().value, page.index());
  const PageSlot parent = index.parent(slot);
  if (parent == kNoSlot) return;
  ensure(index.contains(parent), "the parent of page {}:{} is not in the index", page.rank().value,
         page.index());
  ensure(!pools.in_use(page) || pools.in_use(prefixes.page(parent)),
         "page {}:{} is held and its parent is not", page.rank().value, page.index());
  ensure(!prefixes.counts_hits() || prefixes.hits(parent) >= prefixes.hits(slot),
         "page {}:{} has {} hits and its parent {}", page.rank().value, page.index(),
         prefixes.hits(slot), prefixes.hits(parent));
}

void check_chain(const PagePools& pools, const PrefixCache& prefixes, SequenceId id,
                 const Sequence& sequence, bool is_tree) {
  ensure(sequence.published >= 0 && sequence.published <= std::ssize(sequence.pages),
         "sequence {} has published {} of {} pages", id, sequence.published, sequence.pages.size());
  PageSlot parent = kNoSlot;
  for (auto logical = static_cast<std::size_t>(sequence.placement.released);
       logical < sequence.pages.size(); ++logical) {
    const PageId page = sequence.pages[logical];
    const bool is_published = logical < static_cast<std::size_t>(sequence.published);
    // If a match was brought back, pages behind those that came may be published.
    ensure(pools.is_kept(page) == is_published || (sequence.is_match && !is_tree),
           "page {} of sequence {} is kept: {}", logical, id, pools.is_kept(page));
    if (!is_published) continue;
    ensure(sequence.may_share, "sequence {} has published and does not know", id);
    ensure(prefixes.index().parent(prefixes.slot(page)) == parent,
           "page {} of sequence {} has another parent than the page before", logical, id);
    if (is_tree) parent = prefixes.slot(page);
  }
}

/// Each page in the index waits for its next use, or is held since its last one.
void check_waits(const PrefixCache& prefixes) {
  if (!prefixes.counts_hits()) return;
  const EvictionPages& eviction = prefixes.eviction();
  const OpenWaits& waits = eviction.times.waits();
  std::map<std::pair<std::uint64_t, int>, std::uint32_t> pages;  // [cell, kind]
  for (const PageId page : prefixes.published()) {
    const EvictionPages::Page& here = eviction.pages[prefixes.slot(page)];
    const std::uint64_t cell = eviction.times.cell_of(here.last_use);
    if (cell >= waits.first()) ++pages[{cell, EvictionQueues::kind(here)}];
  }
  for (const auto& [at, count] : pages) {
    const std::uint32_t counted = waits[at.first][static_cast<std::size_t>(at.second)];
    ensure(counted >= count, "of {} pages of kind {} that wait since cell {}, {} are counted",
           count, at.second, at.first, counted);
  }
}

}  // namespace

void check_prefixes(const PagePools& pools, const SequenceTable& sequences,
                    const PrefixCache& prefixes) {
  std::int64_t cached = 0;
  for (PageRank rank{0}; rank.value < pools.ranks(); ++rank.value)
    for (std::int32_t index = 0; index < pools.pages_per_rank(); ++index) {
      check_page(pools, prefixes, {rank, index});
      cached += pools.is_cached({rank, index}) ? 1 : 0;  // also while it is copied to move
    }
  sequences.for_each([&](SequenceId id, const Sequence& sequence) {
    check_chain(pools, prefixes, id, sequence, prefixes.is_tree());
  });
  ensure(prefixes.evictable() == cached, "{} pages are queued and {} are cached",
         prefixes.evictable(), cached);
  check_waits(prefixes);
}

}  // namespace kvmesh
