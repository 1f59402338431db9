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

/// The range of the highest priority that tokens [first, last) overlap.
Keeping keeping_of(std::span<const Retention> retentions, std::int64_t first, std::int64_t last,
                   std::uint64_t operations) {
  const Retention* highest = nullptr;
  for (const Retention& it : retentions) {
    const bool overlaps =
        it.first < last && it.tokens > std::max<std::int64_t>(first - it.first, 0);
    if (overlaps && (highest == nullptr || it.priority > highest->priority)) highest = &it;
  }
  if (highest == nullptr) return {};
  const auto lasts = static_cast<std::uint64_t>(highest->operations);
  return {.priority = highest->priority, .ends = lasts == 0 ? 0 : operations + lasts};
}

bool outlasts(const Keeping& a, const Keeping& b) {
  const auto ends = [](const Keeping& it) { return it.ends - 1; };  // never: the largest number
  return std::pair(a.priority, ends(a)) > std::pair(b.priority, ends(b));
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
  record("use match", match.pin);
  return match.pin;
}

void PageAllocator::State::release(const PrefixMatch& match) {
  static_cast<void>(this->match(match));
  erase(match.pin);
}

/// Finds the published pages of the run. @throws as bring_back.
std::vector<PageId> PageAllocator::State::check_bring_back(const PrefixKey& key, std::int64_t pages,
                                                           std::span<const PageRank> homes) const {
  check_key(key);
  require(!has_states(), "prefix: states are not brought back");
  require(pages >= 0 && pages <= std::ssize(key.hashes()), "prefix: {} of {} full pages", pages,
          key.hashes().size());
  for (const PageRank home : homes)
    require(home.value < options_.ranks, "prefix: rank {} of {}", home.value, options_.ranks);
  std::vector<PageId> run(static_cast<std::size_t>(pages));
  std::int64_t missing = 0, cached = 0;
  for (auto logical = first_seen(pages); logical < run.size(); ++logical) {
    const PageSlot slot = prefixes_->find(key.hashes()[logical]);
    if (slot != kNoSlot) run[logical] = prefixes_->page(slot);
    missing += slot == kNoSlot;
    cached += slot != kNoSlot && pools_.is_cached(run[logical]) && !pools_.is_moving(run[logical]);
  }
  require(missing == std::ssize(homes), "prefix: {} homes for {} pages that are not cached",
          homes.size(), missing);
  if (!free_for(missing + cached)) throw out_of_pages(missing);
  return run;
}

/// The number of leading pages that the query after `pages` pages does not see.
std::size_t PageAllocator::State::first_seen(std::int64_t pages) const {
  if (options_.window == 0) return 0;
  return static_cast<std::size_t>(pages_behind(pages * options_.page_size));
}

PrefixMatch PageAllocator::State::bring_back(const PrefixKey& key, std::int64_t pages,
                                             std::span<const PageRank> homes) {
  const std::vector<PageId> run = check_bring_back(key, pages, homes);
  const std::size_t first = first_seen(pages);
  Sequence made;
  made.pages.resize(first);
  made.placement.released = static_cast<std::int32_t>(first);
  prepare(made, pages - static_cast<std::int64_t>(first));
  made.pages = run;
  sequences_.prepare(0);
  const SequenceId id = sequences_.create();

  Sequence& sequence = *sequences_.find(id) = std::move(made);
  sequence.length = pages * options_.page_size;
  sequence.is_match = sequence.may_share = true;
  hold_published(sequence, run, first);
  take_missing(sequence, run, first, homes);
  for (const PageRank home : homes) journal_.fold_in(static_cast<std::uint64_t>(home.value));
  journal_.fold_in(static_cast<std::uint64_t>(pages));
  log_added(id, sequence, first);
  record("get back", id, digest_of(key));
  return {.pin = id, .tokens = sequence.length};
}

/// Makes the sequence hold the published pages of a run.
void PageAllocator::State::hold_published(Sequence& sequence, std::span<const PageId> run,
                                          std::size_t first) {
  std::size_t end = first;
  while (end < run.size() && run[end].valid()) ++end;
  sequence.published = static_cast<std::int32_t>(end);
  for (const PageId page : run.subspan(first)) {
    if (!page.valid()) continue;
    pools_.add_reference(page);
    sequence.placement.added(page.rank());
    if (sequence.placement.anchor == SequencePlacement::kNone) set_anchor(sequence, page);
    prefixes_->hit(page);
  }
}

/// Takes new pages for the unpublished pages of a run: first those with a home, because placement
/// might take the home's last page.
void PageAllocator::State::take_missing(Sequence& sequence, std::span<const PageId> run,
                                        std::size_t first, std::span<const PageRank> homes) {
  for (const bool anywhere : {false, true}) {
    auto home = homes.begin();
    for (std::size_t logical = first; logical < run.size(); ++logical) {
      if (run[logical].valid()) continue;
      if ((home->value < 0) == anywhere) take_at(*home, sequence, logical);
      ++home;
    }
  }
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
  if (sequence.placement.anchor == SequencePlacement::kNone) set_anchor(sequence, page);
}

void PageAllocator::State::set_anchor(Sequence& sequence, PageId page) {
  sequence.placement.anchor = page.rank().value;
  sequence.placement.anchor_is_shared = true;
}

void PageAllocator::State::check_publish(SequenceId id, const PrefixKey& key,
                                         std::span<const Retention> retentions) const {
  check_key(key);
  const Sequence& sequence = sequences_.at(id);
  for (const Retention& it : retentions)
    require(it.first >= 0 && it.tokens >= 0 && it.priority >= 0 && it.priority <= 100 &&
                it.operations >= 0,
            "prefix: priority {} for {} tokens from {}, for {} operations", it.priority, it.tokens,
            it.first, it.operations);
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
  const std::size_t full = begins_with_whole_page(id, sequence) ? full_pages(sequence, key) : 0;
  prefixes_->prepare(Retention::kPriority);
  for (const Retention& it : retentions) prefixes_->prepare(it.priority);
  if (!retentions.empty()) prefixes_->prepare_ends(full + 1);
  const std::vector<Keeping> keepings = keepings_of(full, retentions);

  for (auto logical = static_cast<std::size_t>(sequence.placement.released); logical < full;
       ++logical) {
    const Keeping& keeping = keepings[logical];
    fold_in(keeping);
    if (logical < static_cast<std::size_t>(sequence.published)) {
      prefixes_->raise(sequence.pages[logical], keeping);
    } else if (!publish_page(id, sequence, logical, key, logical, keeping)) {
      break;
    }
  }
  if (has_states()) publish_state(id, sequence, key, retentions);
  record("publish", id, digest_of(key));
}

/// How long the page of a hash of the key is kept for its own sake.
Keeping PageAllocator::State::keeping(std::size_t hash,
                                      std::span<const Retention> retentions) const {
  const std::int64_t first = static_cast<std::int64_t>(hash) * tokens_per_hash();
  return keeping_of(retentions, first, first + tokens_per_hash(), journal_.operations());
}

/// [page] A page is kept as long as those after it, which would leave with it.
std::vector<Keeping> PageAllocator::State::keepings_of(
    std::size_t pages, std::span<const Retention> retentions) const {
  std::vector<Keeping> all(pages);
  for (std::size_t i = pages; i-- > 0;) {
    all[i] = keeping(i, retentions);
    if (i + 1 < pages && prefixes_->is_tree() && outlasts(all[i + 1], all[i])) all[i] = all[i + 1];
  }
  return all;
}

/// The digest has how long a page is kept.
void PageAllocator::State::fold_in(const Keeping& keeping) {
  journal_.fold_in(static_cast<std::uint64_t>(keeping.priority));
  if (keeping.ends != 0) journal_.fold_in(keeping.ends);
}

/// Names the sequence's state by all of its tokens, if they fill pages of the key.
void PageAllocator::State::publish_state(SequenceId id, Sequence& sequence, const PrefixKey& key,
                                         std::span<const Retention> retentions) {
  const std::int64_t pages = sequence.length / tokens_per_hash();
  if (pages == 0 || sequence.length % tokens_per_hash() != 0 || pages > std::ssize(key.hashes()))
    return;
  const auto hash = static_cast<std::size_t>(pages - 1);
  const Keeping keeping = this->keeping(hash, retentions);
  fold_in(keeping);
  if (sequence.published == 0) {
    publish_page(id, sequence, 0, key, hash, keeping);
  } else if (prefixes_->hash(sequence.pages[0]) == key.hashes()[hash]) {  // else it was truncated
    prefixes_->raise(sequence.pages[0], keeping);
  }
}

/// Publishes one page under hash `hash` of the key, or takes the page that another sequence
/// published in its place. Returns false for a page that forks share: they might part from it one
/// by one, and hold a page but not the published page before it.
bool PageAllocator::State::publish_page(SequenceId id, Sequence& sequence, std::size_t logical,
                                        const PrefixKey& key, std::size_t hash,
                                        const Keeping& keeping) {
  PageId& page = sequence.pages[logical];
  const PageSlot same = prefixes_->find(key.hashes()[hash]);
  const auto tokens = static_cast<std::size_t>(tokens_per_hash());
  Change change{.sequence = id,
                .position = static_cast<std::int32_t>(logical),
                .old_page = page,
                .new_page = page,
                .kind = ChangeKind::kPublished};
  if (same == kNoSlot && pools_.shared(page)) return false;
  if (same != kNoSlot && prefixes_->page(same) == page) {  // of a match that was brought back
    prefixes_->raise(page, keeping);
    sequence.published = static_cast<std::int32_t>(logical) + 1;
    return true;
  }
  if (same == kNoSlot) {
    const PageId parent = logical == 0 ? PageId{} : sequence.pages[logical - 1];
    prefixes_->publish(page, key.hashes()[hash], parent,
                       key.tokens().subspan(hash * tokens, tokens),
                       key.has_items(static_cast<std::int64_t>(hash)), keeping);
  } else {
    change.new_page = prefixes_->page(same);
    change.kind = ChangeKind::kReplaced;
    pools_.add_reference(change.new_page);
    prefixes_->raise(change.new_page, keeping);
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
