#include "allocator/state.hpp"

#include <algorithm>
#include <limits>

#include "core/checked.hpp"

namespace kvmesh {
namespace {

AllocatorOptions checked(const AllocatorOptions& options) {
  require(options.ranks >= 1 && options.ranks <= PageId::kMaxRanks, "ranks is {}, must be 1 to {}",
          options.ranks, PageId::kMaxRanks);
  require(options.pages_per_rank >= 1 && options.pages_per_rank <= PageId::kMaxPagesPerRank,
          "pages_per_rank is {}, must be 1 to {}", options.pages_per_rank,
          PageId::kMaxPagesPerRank);
  require(options.pool_pages.empty() ||
              options.pool_pages.size() == static_cast<std::size_t>(options.ranks),
          "pool_pages has {} sizes for {} ranks", options.pool_pages.size(), options.ranks);
  for (const std::int64_t pages : options.pool_pages)
    require(pages >= 0 && pages <= options.pages_per_rank, "a pool of {} pages, of at most {}",
            pages, options.pages_per_rank);
  require(options.page_size >= 1, "page_size is {}, must be at least 1", options.page_size);
  static_cast<void>(checked_product("allocator: tokens of all pages",
                                    {options.ranks, options.pages_per_rank, options.page_size}));
  require(options.placement <= Placement::kPacked, "placement {} is not valid",
          static_cast<int>(options.placement));
  require(
      options.prefix.hash <= PrefixHash::kXxh3 && options.prefix.eviction <= Eviction::kSegmented,
      "prefix: hash {} or eviction {} is not valid", static_cast<int>(options.prefix.hash),
      static_cast<int>(options.prefix.eviction));
  require(options.window >= 0, "window is {}, must not be negative", options.window);
  require(options.state_interval == 0 || (options.state_interval > 0 && options.window == 0),
          "state_interval is {} with a window of {}", options.state_interval, options.window);
  require(options.home_threshold_tokens >= 0, "home_threshold_tokens is {}, must not be negative",
          options.home_threshold_tokens);
  return options;
}

std::uint64_t digest_of(const AllocatorOptions& options) {
  std::uint64_t hash = fold(0, static_cast<std::uint64_t>(options.ranks));
  hash = fold(hash, static_cast<std::uint64_t>(options.pages_per_rank));
  for (const std::int64_t pages : options.pool_pages)
    hash = fold(hash, static_cast<std::uint64_t>(pages));
  hash = fold(hash, static_cast<std::uint64_t>(options.page_size));
  hash = fold(hash, static_cast<std::uint64_t>(options.placement));
  hash = fold(hash, static_cast<std::uint64_t>(options.home_threshold_tokens));
  if (options.window > 0) hash = fold(hash, static_cast<std::uint64_t>(options.window));
  if (options.state_interval > 0)
    hash = fold(hash, ~static_cast<std::uint64_t>(options.state_interval));
  const PrefixOptions& prefix = options.prefix;
  hash = fold(hash, prefix.enabled);
  if (!prefix.enabled) return hash;
  hash = fold(hash, static_cast<std::uint64_t>(prefix.hash));
  hash = fold(hash, static_cast<std::uint64_t>(prefix.eviction));
  hash = fold(hash, prefix.compares_tokens);
  for (const char letter : prefix.seed) hash = fold(hash, static_cast<unsigned char>(letter));
  return hash;
}

/// A space that follows from the options has its highest bit set: callers count up from 1.
AllocatorOptions with_id_space(AllocatorOptions options) {
  if (options.id_space == 0)
    options.id_space = static_cast<std::uint16_t>(0x8000 | digest_of(options) >> 48);
  return options;
}

/// The part of an id that the digest covers: the rest is the space, which is not part of the state.
std::uint64_t digest_word(SequenceId id) { return SequenceId(0, id.generation(), id.slot()).value; }

/// Sums of asked pages stop at the largest value: no pool has that many anyway.
std::int64_t saturating_add(std::int64_t a, std::int64_t b) {
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  return a > kMax - b ? kMax : a + b;
}

}  // namespace

PageAllocator::State::State(const AllocatorOptions& options)
    : options_(with_id_space(checked(options))),
      pools_(options.ranks, options.pages_per_rank, options.pool_pages),
      sequences_(options_.id_space),
      placement_(make_placement(options)),
      changes_(options.ranks * options.pages_per_rank),
      evictions_(options.ranks * options.pages_per_rank) {
  journal_.fold_in(digest_of(options));
  if (options.prefix.enabled)
    prefixes_ = std::make_unique<PrefixCache>(options, pools_, evictions_);
}

SequenceId PageAllocator::State::create() {
  const SequenceId id = sequences_.create();
  record("create", id);
  return id;
}

Result<Done> PageAllocator::State::can_reserve(SequenceId id, std::int64_t tokens) {
  Sequence& sequence = sequences_.at(id);
  require(tokens >= 0, "reserve of {} tokens", tokens);
  const std::int64_t missing = missing_pages(sequence, static_cast<std::uint64_t>(tokens));
  if (!free_for(missing)) return out_of_pages(missing);
  prepare(sequence, missing);
  return Done{};
}

Result<Done> PageAllocator::State::try_reserve(SequenceId id, std::int64_t tokens) {
  if (Result<Done> can = can_reserve(id, tokens); !can) return can;

  Sequence& sequence = *sequences_.find(id);
  grow(id, sequence, missing_pages(sequence, static_cast<std::uint64_t>(tokens)));
  record("reserve", id, static_cast<std::uint64_t>(tokens));
  return Done{};
}

Result<Done> PageAllocator::State::can_append(std::span<const AppendRequest> requests) {
  const std::int64_t asked = plan_append(requests);
  if (!free_for(asked)) return out_of_pages(asked);
  copies_.reserve(shared_tails_.size());
  sources_.reserve(shared_tails_.size());
  for (const Growth& growth : growths_) prepare(*growth.sequence, growth.missing);
  return Done{};
}

Result<std::vector<PageCopy>> PageAllocator::State::try_append(
    std::span<const AppendRequest> requests) {
  if (Result<Done> can = can_append(requests); !can) return can.reason();
  std::vector<PageCopy> copies = std::move(copies_);

  // Copies first: each needs a page of one rank, while new pages can be on any. Lengths last: a
  // copy counts the tokens that its page holds before the append.
  for (const Growth& growth : growths_) {
    Sequence& sequence = *growth.sequence;
    if (!sequence.may_share || growth.appends == 0 || sequence.length % options_.page_size == 0)
      continue;
    const std::int64_t tail = sequence.length / options_.page_size;
    if (!pools_.writable(sequence.pages[static_cast<std::size_t>(tail)]))
      copies.push_back(replace(growth.id, sequence, tail));
  }
  for (const Growth& growth : growths_) grow(growth.id, *growth.sequence, growth.missing);
  give_back_sources();
  for (const AppendRequest& request : requests) {
    Sequence& sequence = *sequences_.find(request.sequence);
    sequence.length += request.tokens;
    sequence.version += request.tokens > 0 ? 1 : 0;
    journal_.fold_in(digest_word(request.sequence));
    journal_.fold_in(static_cast<std::uint64_t>(request.tokens));
  }
  record("append", requests.empty() ? SequenceId{} : requests.front().sequence, requests.size());
  return copies;
}

Result<Done> PageAllocator::State::can_make_writable(SequenceId id, std::int64_t begin,
                                                     std::int64_t end) {
  Sequence& sequence = sequences_.at(id);
  require(begin >= 0 && begin <= end && end <= capacity(sequence),
          "make_writable of positions [{}, {}) of a sequence with capacity {}", begin, end,
          capacity(sequence));
  const auto [first, last] = pages_to_own(sequence, begin, end);
  std::int64_t asked = 0;
  for (std::int64_t logical = first; logical < last && sequence.may_share; ++logical)
    asked += pools_.writable(sequence.pages[static_cast<std::size_t>(logical)]) ? 0 : 1;
  if (!free_for(asked)) return out_of_pages(asked);
  copies_.reserve(static_cast<std::size_t>(asked));
  sources_.reserve(static_cast<std::size_t>(asked));
  prepare(sequence, 0);
  return Done{};
}

Result<std::vector<PageCopy>> PageAllocator::State::try_make_writable(SequenceId id,
                                                                      std::int64_t begin,
                                                                      std::int64_t end) {
  if (Result<Done> can = can_make_writable(id, begin, end); !can) return can.reason();
  std::vector<PageCopy> copies = std::move(copies_);

  Sequence& sequence = *sequences_.find(id);
  const auto [first, last] = pages_to_own(sequence, begin, end);
  for (std::int64_t logical = first; logical < last && sequence.may_share; ++logical)
    if (!pools_.writable(sequence.pages[static_cast<std::size_t>(logical)]))
      copies.push_back(replace(id, sequence, logical));
  give_back_sources();
  journal_.fold_in(static_cast<std::uint64_t>(begin));
  record("make_writable", id, static_cast<std::uint64_t>(end));
  return copies;
}

/// Returns the pages [first, last) that make_writable of positions [begin, end) replaces unless
/// they are writable. A sequence that writes to one of its published pages leaves the later ones,
/// too, since their hashes include the tokens before them. Pages behind the window are left out.
std::pair<std::int64_t, std::int64_t> PageAllocator::State::pages_to_own(const Sequence& sequence,
                                                                         std::int64_t begin,
                                                                         std::int64_t end) const {
  const std::int64_t first =
      std::max<std::int64_t>(begin / options_.page_size, sequence.placement.released);
  const std::int64_t last = begin == end ? first : pages_for(end);
  const bool leaves = first < last && first < sequence.published;
  return {first, leaves ? std::max<std::int64_t>(last, sequence.published) : last};
}

SequenceId PageAllocator::State::fork(SequenceId id) {
  const Sequence& source = sequences_.at(id);
  const std::int64_t shared = pages_for(source.length);
  std::vector<PageId> pages(source.pages.begin(), source.pages.begin() + shared);
  const SequenceId child_id = sequences_.create();

  // create() may have moved the source.
  Sequence& parent = *sequences_.find(id);
  Sequence& child = *sequences_.find(child_id);
  child.pages = std::move(pages);
  child.length = parent.length;
  child.published = std::min(parent.published, static_cast<std::int32_t>(shared));
  if (shared > 0) {
    child.placement.anchor = parent.placement.anchor;
    child.placement.released = parent.placement.released;
    child.placement.released_slots = parent.placement.released_slots;
    child.may_share = parent.may_share = true;
  }
  for (PageId page : child.held_pages()) pools_.add_reference(page);
  log_added(child_id, child, static_cast<std::size_t>(child.placement.released));
  record("fork", child_id, digest_word(id));
  return child_id;
}

void PageAllocator::State::truncate(SequenceId id, std::int64_t length) {
  check_truncate(id, length);
  Sequence& sequence = *sequences_.find(id);

  sequence.version += length < sequence.length ? 1 : 0;
  sequence.length = length;
  drop_pages_past(id, sequence, pages_for(length));
  record("truncate", id, static_cast<std::uint64_t>(length));
}

void PageAllocator::State::erase(SequenceId id) {
  Sequence& sequence = sequences_.at(id);

  drop_pages_past(id, sequence, 0);
  sequences_.erase(id);
  changes_.record({.sequence = id, .kind = ChangeKind::kErased});
  record("erase", id);
}

std::int64_t PageAllocator::State::pages_for(std::int64_t tokens) const {
  return tokens / options_.page_size + (tokens % options_.page_size != 0);
}

/// Returns how many pages the sequence lacks for `tokens` tokens in all. `tokens` may be the sum of
/// two int64; the result still is one, since the sequence has pages for at least one of the two.
std::int64_t PageAllocator::State::missing_pages(const Sequence& sequence,
                                                 std::uint64_t tokens) const {
  if (tokens <= static_cast<std::uint64_t>(capacity(sequence))) return 0;
  const auto page_size = static_cast<std::uint64_t>(options_.page_size);
  const std::uint64_t pages = tokens / page_size + (tokens % page_size != 0);
  return static_cast<std::int64_t>(pages - sequence.pages.size());
}

/// Checks the batch and sets growths_ and shared_tails_. Returns the pages that it needs.
std::int64_t PageAllocator::State::plan_append(std::span<const AppendRequest> requests) {
  ++batch_;
  std::int64_t asked = 0;
  growths_.clear();
  shared_tails_.clear();
  for (const AppendRequest& request : requests) {
    Sequence& sequence = sequences_.at(request.sequence);
    require(request.tokens >= 0, "append of {} tokens", request.tokens);
    require(sequence.batch != batch_, "append names sequence {} twice", request.sequence);
    sequence.batch = batch_;

    const auto tokens =
        static_cast<std::uint64_t>(sequence.length) + static_cast<std::uint64_t>(request.tokens);
    const std::int64_t missing = missing_pages(sequence, tokens);
    if (missing == 0 && !sequence.may_share) continue;
    asked = saturating_add(asked, missing);
    growths_.push_back({request.sequence, &sequence, missing, request.tokens});

    if (!sequence.may_share || request.tokens == 0 || sequence.length % options_.page_size == 0)
      continue;
    const PageId tail =
        sequence.pages[static_cast<std::size_t>(sequence.length / options_.page_size)];
    if (!pools_.writable(tail)) shared_tails_.push_back(tail);
  }
  return saturating_add(asked, plan_tail_copies());
}

/// Returns how many copies the batch needs of last pages that are shared, published or moving: one
/// per sequence of the batch. But if all sequences that share a page are in the batch, the last of
/// them keeps it, unless it is published or moving.
std::int64_t PageAllocator::State::plan_tail_copies() {
  std::int64_t copies = 0;
  std::sort(shared_tails_.begin(), shared_tails_.end());
  for (auto first = shared_tails_.begin(); first != shared_tails_.end();) {
    const auto last = std::upper_bound(first, shared_tails_.end(), *first);
    const std::int64_t keepers = pools_.is_kept(*first) || pools_.is_moving(*first) ? 0 : 1;
    copies += std::min<std::int64_t>(last - first, pools_.reference_count(*first) - keepers);
    first = last;
  }
  return copies;
}

/// Allocates the memory that `missing` more pages need.
void PageAllocator::State::prepare(Sequence& sequence, std::int64_t missing) {
  const std::size_t wanted = sequence.pages.size() + static_cast<std::size_t>(missing);
  // Doubling, as resize() would: many small appends stay linear.
  if (wanted > sequence.pages.capacity())
    sequence.pages.reserve(std::max(wanted, 2 * sequence.pages.capacity()));
  placement_->prepare(sequence, static_cast<std::int64_t>(wanted), options_.ranks);
}

void PageAllocator::State::grow(SequenceId id, Sequence& sequence, std::int64_t missing) {
  if (missing == 0) return;
  const std::size_t held = sequence.pages.size();
  sequence.pages.resize(held + static_cast<std::size_t>(missing));
  placement_->take(sequence.placement, static_cast<std::int64_t>(held),
                   std::span(sequence.pages).subspan(held), pools_);
  log_added(id, sequence, held);
}

void PageAllocator::State::log_added(SequenceId id, const Sequence& sequence, std::size_t first) {
  if (!changes_.is_followed()) return;
  for (std::size_t logical = first; logical < sequence.pages.size(); ++logical)
    changes_.record({.sequence = id,
                     .position = static_cast<std::int32_t>(logical),
                     .new_page = sequence.pages[logical],
                     .kind = ChangeKind::kAdded});
}

/// Gives the sequence a page of its own in place of a shared one: on the same rank if it can be, so
/// that the copy stays there.
PageCopy PageAllocator::State::replace(SequenceId id, Sequence& sequence, std::int64_t logical) {
  PageId& page = sequence.pages[static_cast<std::size_t>(logical)];
  const PageId source = page;
  ++sequence.version;
  sequence.published = std::min(sequence.published, static_cast<std::int32_t>(logical));
  sequence.placement.removed(source.rank());
  if (pools_.free_pages(source.rank()) > 0) {
    page = pools_.take(source.rank());
    sequence.placement.added(source.rank());
  } else {
    placement_->take(sequence.placement, logical, {&page, 1}, pools_);
  }
  // A published source could be evicted at once, and be a page that is copied to.
  pools_.is_kept(source) ? sources_.push_back(source) : pools_.give_back(source);
  changes_.record({.sequence = id,
                   .position = static_cast<std::int32_t>(logical),
                   .old_page = source,
                   .new_page = page,
                   .kind = ChangeKind::kReplaced});
  const std::int64_t tokens = sequence.length - logical * options_.page_size;
  return {source, page, static_cast<int>(std::min<std::int64_t>(tokens, options_.page_size))};
}

/// Gives back the published pages that the operation copies, from the last to the first.
void PageAllocator::State::give_back_sources() {
  for (; !sources_.empty(); sources_.pop_back()) pools_.give_back(sources_.back());
}

void PageAllocator::State::drop_pages_past(SequenceId id, Sequence& sequence, std::int64_t pages) {
  const auto kept = static_cast<std::size_t>(pages);
  const auto held = std::max(kept, static_cast<std::size_t>(sequence.placement.released));
  const auto published = static_cast<std::size_t>(sequence.published);
  const auto give_back = [&](PageId page) {
    sequence.placement.removed(page.rank());
    pools_.give_back(page);
  };
  for (std::size_t logical = std::max(held, published); logical < sequence.pages.size(); ++logical)
    give_back(sequence.pages[logical]);
  // From the end: what is used last is evicted last, and children go before their parents.
  for (std::size_t logical = published; logical > held;) give_back(sequence.pages[--logical]);
  sequence.published = static_cast<std::int32_t>(std::min(kept, published));
  log_dropped(id, sequence, kept);
  sequence.pages.resize(kept);
  if (pages > 0) return;
  sequence.placement.anchor = SequencePlacement::kNone;
  sequence.placement.released = sequence.placement.released_slots = 0;
  sequence.may_share = false;
}

void PageAllocator::State::log_dropped(SequenceId id, const Sequence& sequence, std::size_t kept) {
  if (!changes_.is_followed()) return;
  for (std::size_t logical = sequence.pages.size(); logical-- > kept;)
    changes_.record({.sequence = id,
                     .position = static_cast<std::int32_t>(logical),
                     .old_page = sequence.pages[logical],
                     .kind = ChangeKind::kDropped});
}

void PageAllocator::State::record(std::string_view operation, SequenceId id,
                                  std::uint64_t argument) {
  journal_.fold_in(static_cast<std::uint64_t>(operation.front()));  // no two start alike
  journal_.fold_in(digest_word(id));
  journal_.fold_in(argument);
  journal_.fold_in(pools_.history());
  journal_.record(operation, id);
  if (prefixes_) prefixes_->set_operations(journal_.operations());
}

}  // namespace kvmesh
