// The operations of the prefix cache.
#include <algorithm>

#include "allocator/state.hpp"
#include "core/check.hpp"

namespace kvmesh {
namespace {

std::uint64_t digest_of(const PrefixKey& key) {
  std::uint64_t hash = fold(0, key.tokens().size());
  const std::span<const PageHash> pages = key.hashes();
  const PageHash& last = pages.empty() ? key.root() : pages.back();
  for (const std::uint8_t byte : last.bytes) hash = fold(hash, byte);
  const std::size_t full = pages.size() * static_cast<std::size_t>(key.rules().page_size);
  for (const std::int32_t token : key.tokens().subspan(full))
    hash = fold(hash, static_cast<std::uint64_t>(token));
  return hash;
}

/// The priority of tokens [first, last): the highest of the ranges that they overlap.
int priority_of(std::span<const Retention> retentions, std::int64_t first, std::int64_t last) {
  int priority = -1;
  for (const Retention& it : retentions)
    if (it.first < last && first < it.first + it.tokens) priority = std::max(priority, it.priority);
  return priority < 0 ? Retention::kPriority : priority;
}

}  // namespace

void PageAllocator::State::check_key(const PrefixKey& key) const {
  require(prefixes_ != nullptr, "prefix: the prefix cache is off (PrefixOptions::enabled)");
  require(key.rules() == prefix_rules(), "prefix: the key has other rules than this allocator");
}

PrefixRun PageAllocator::State::find_prefix(const PrefixKey& key, std::int64_t most) {
  check_key(key);
  require(most >= 0, "prefix: a match of at most {} tokens", most);
  return prefixes_->find(key, most);
}

PrefixMatch PageAllocator::State::match_prefix(const PrefixKey& key, std::int64_t most) {
  const PrefixRun run = find_prefix(key, most);
  sequences_.prepare(run.first + run.pages.size());
  const SequenceId id = sequences_.create();

  Sequence& sequence = *sequences_.find(id);
  sequence.pages.resize(run.first);  // behind the window
  for (const PageSlot slot : run.pages) sequence.pages.push_back(prefixes_->page(slot));
  sequence.length = run.tokens;
  sequence.is_match = true;
  sequence.published = static_cast<std::int32_t>(sequence.pages.size());
  sequence.placement.released = static_cast<std::int32_t>(run.first);
  if (!run.pages.empty()) {
    sequence.placement.anchor = sequence.held_pages().front().rank().value;
    sequence.placement.anchor_is_shared = true;
    sequence.may_share = true;
  }
  for (const PageId page : sequence.held_pages()) pools_.add_reference(page);
  prefixes_->hit(run.pages);
  log_added(id, sequence, run.first);
  if (most != kAllTokens) journal_.fold_in(static_cast<std::uint64_t>(most));
  record("lookup", id, digest_of(key));
  return {.pin = id, .tokens = run.tokens};
}

Sequence& PageAllocator::State::match(const PrefixMatch& match) {
  Sequence& sequence = sequences_.at(match.pin);
  require(sequence.is_match, "prefix: {} pins no match: a sequence was made of it, or it never did",
          match.pin);
  return sequence;
}

SequenceId PageAllocator::State::create_with_prefix(const PrefixMatch& match) {
  this->match(match).is_match = false;
  return match.pin;
}

void PageAllocator::State::release(const PrefixMatch& match) {
  static_cast<void>(this->match(match));
  erase(match.pin);
}

PrefixMatch PageAllocator::State::bring_back(const PrefixMatch& match,
                                             std::span<const PageRank> homes) {
  Sequence& sequence = this->match(match);
  require(options_.window == 0, "prefix: pages that come back, with a window of {}",
          options_.window);
  for (const PageRank home : homes)
    require(home.value < options_.ranks, "prefix: rank {} of {}", home.value, options_.ranks);
  const auto missing = static_cast<std::int64_t>(homes.size());
  if (!free_for(missing)) throw out_of_pages(missing);
  prepare(sequence, missing);

  const std::int64_t whole = sequence.length / options_.page_size;
  drop_pages_past(match.pin, sequence, whole);
  const std::size_t first = sequence.pages.size();
  for (std::size_t i = 0; i < homes.size(); ++i) {
    sequence.pages.emplace_back();
    take_at(homes[i], sequence, first + i);
    journal_.fold_in(static_cast<std::uint64_t>(homes[i].value));
  }
  sequence.length = (whole + missing) * options_.page_size;
  ++sequence.version;
  log_added(match.pin, sequence, first);
  record("bring back", match.pin, homes.size());
  return {.pin = match.pin, .tokens = sequence.length};
}

/// Takes logical page `logical` on `home`, or where placement puts it.
void PageAllocator::State::take_at(PageRank home, Sequence& sequence, std::size_t logical) {
  PageId& page = sequence.pages[logical];
  if (home.value < 0 || pools_.free_pages(home) == 0) {
    placement_->take(sequence.placement, static_cast<std::int64_t>(logical), {&page, 1}, pools_);
    return;
  }
  page = pools_.take(home);
  sequence.placement.added(home);
  if (sequence.placement.anchor != SequencePlacement::kNone) return;
  sequence.placement.anchor = home.value;
  sequence.placement.anchor_is_shared = true;
}

void PageAllocator::State::check_publish(SequenceId id, const PrefixKey& key,
                                         std::span<const Retention> retentions) const {
  check_key(key);
  const Sequence& sequence = sequences_.at(id);
  for (const Retention& it : retentions)
    require(it.first >= 0 && it.tokens >= 0 && it.priority >= 0 && it.priority <= 100,
            "prefix: priority {} for {} tokens from {}", it.priority, it.tokens, it.first);
  const std::size_t full = full_pages(sequence, key);
  const auto known = std::min(static_cast<std::size_t>(sequence.published), full);
  const auto released = static_cast<std::size_t>(sequence.placement.released);
  for (std::size_t logical = released; logical < known; ++logical)
    require(prefixes_->hash(sequence.pages[logical]) == key.hashes()[logical],
            "prefix: page {} of sequence {} was published with other tokens", logical, id);
}

/// The number of pages that the sequence has filled and the key names.
std::size_t PageAllocator::State::full_pages(const Sequence& sequence, const PrefixKey& key) const {
  return std::min(static_cast<std::size_t>(sequence.length / options_.page_size),
                  key.hashes().size());
}

void PageAllocator::State::publish(SequenceId id, const PrefixKey& key,
                                   std::span<const Retention> retentions) {
  check_publish(id, key, retentions);
  Sequence& sequence = *sequences_.find(id);
  const std::size_t full = full_pages(sequence, key);
  prefixes_->prepare(Retention::kPriority);
  for (const Retention& it : retentions) prefixes_->prepare(it.priority);

  for (auto logical = static_cast<std::size_t>(sequence.placement.released); logical < full;
       ++logical) {
    const auto first = static_cast<std::int64_t>(logical) * options_.page_size;
    const int priority = priority_of(retentions, first, first + options_.page_size);
    journal_.fold_in(static_cast<std::uint64_t>(priority));
    if (logical < static_cast<std::size_t>(sequence.published)) {
      prefixes_->raise(sequence.pages[logical], priority);
    } else if (!publish_page(id, sequence, logical, key, priority)) {
      break;
    }
  }
  record("publish", id, digest_of(key));
}

/// Publishes one page, or takes the page that another sequence published in its place. Returns
/// false for a page that forks share: they might part from it one by one, and hold a page but not
/// the published page before it.
bool PageAllocator::State::publish_page(SequenceId id, Sequence& sequence, std::size_t logical,
                                        const PrefixKey& key, int priority) {
  PageId& page = sequence.pages[logical];
  const PageSlot same = prefixes_->find(key.hashes()[logical]);
  const auto page_size = static_cast<std::size_t>(options_.page_size);
  Change change{.sequence = id,
                .position = static_cast<std::int32_t>(logical),
                .old_page = page,
                .new_page = page,
                .kind = ChangeKind::kPublished};
  if (same == kNoSlot && pools_.shared(page)) return false;
  if (same == kNoSlot) {
    const PageId parent = logical == 0 ? PageId{} : sequence.pages[logical - 1];
    prefixes_->publish(page, key.hashes()[logical], parent,
                       key.tokens().subspan(logical * page_size, page_size),
                       key.has_items(static_cast<std::int64_t>(logical)), priority);
  } else {
    change.new_page = prefixes_->page(same);
    change.kind = ChangeKind::kReplaced;
    pools_.add_reference(change.new_page);
    prefixes_->raise(change.new_page, priority);
    sequence.placement.removed(page.rank());
    pools_.give_back(page);
    page = change.new_page;
    sequence.placement.added(page.rank());
    ++sequence.version;
  }
  changes_.record(change);
  sequence.may_share = true;
  sequence.published = static_cast<std::int32_t>(logical) + 1;
  return true;
}

}  // namespace kvmesh
