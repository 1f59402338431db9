#include <utility>

#include "allocator/integrity.hpp"
#include "allocator/state.hpp"
#include "core/check.hpp"
#include "kvmesh/allocator.hpp"

namespace kvmesh {
namespace {

/// Returns the state of an allocator. @throws InvalidArgument if it was moved from.
template <class State>
State& of(const std::unique_ptr<State>& state) {
  require(state != nullptr, "page allocator: it was moved from");
  return *state;
}

/// Returns the pools of an allocator. @throws InvalidArgument if none of them has the page.
template <class State>
const PagePools& pools_with(PageId page, const std::unique_ptr<State>& state) {
  const PagePools& pools = of(state).pools();
  require(pools.contains(page), "page {}:{} is in no pool", page.rank().value, page.index());
  return pools;
}

}  // namespace

PageAllocator::PageAllocator(const AllocatorOptions& options)
    : state_(std::make_unique<State>(options)) {}
PageAllocator::~PageAllocator() = default;
PageAllocator::PageAllocator(PageAllocator&&) noexcept = default;
PageAllocator& PageAllocator::operator=(PageAllocator&&) noexcept = default;

PageAllocator::State& PageAllocator::changing() {
  require(of(state_).moving() != Moving::kAlone,
          "allocator: pages are being moved: finish or cancel that first");
  return of(state_);
}

PageAllocator::State& PageAllocator::starting_moves() {
  require(of(state_).moving() == Moving::kNone,
          "allocator: pages are being moved: finish or cancel that first");
  return of(state_);
}

const AllocatorOptions& PageAllocator::options() const { return of(state_).options(); }

SequenceId PageAllocator::create() { return changing().create(); }

void PageAllocator::reserve(SequenceId sequence, std::int64_t tokens) {
  try_reserve(sequence, tokens).value();
}

Result<Done> PageAllocator::try_reserve(SequenceId sequence, std::int64_t tokens) {
  return changing().try_reserve(sequence, tokens);
}

std::vector<PageCopy> PageAllocator::append(std::span<const AppendRequest> requests) {
  return try_append(requests).value();
}

std::vector<PageCopy> PageAllocator::append(SequenceId sequence, std::int64_t tokens) {
  const AppendRequest request{sequence, tokens};
  return append({&request, 1});
}

Result<std::vector<PageCopy>> PageAllocator::try_append(std::span<const AppendRequest> requests) {
  return changing().try_append(requests);
}

std::int64_t PageAllocator::pages_needed(std::span<const AppendRequest> requests) const {
  return of(state_).pages_needed(requests);
}

std::vector<PageCopy> PageAllocator::make_writable(SequenceId sequence, std::int64_t begin,
                                                   std::int64_t end) {
  return try_make_writable(sequence, begin, end).value();
}

Result<std::vector<PageCopy>> PageAllocator::try_make_writable(SequenceId sequence,
                                                               std::int64_t begin,
                                                               std::int64_t end) {
  return changing().try_make_writable(sequence, begin, end);
}

Result<Done> PageAllocator::can_reserve(SequenceId sequence, std::int64_t tokens) {
  return of(state_).can_reserve(sequence, tokens);
}

Result<Done> PageAllocator::can_append(std::span<const AppendRequest> requests) {
  return of(state_).can_append(requests);
}

Result<Done> PageAllocator::can_make_writable(SequenceId sequence, std::int64_t begin,
                                              std::int64_t end) {
  return of(state_).can_make_writable(sequence, begin, end);
}

void PageAllocator::slide_window(SequenceId sequence, std::int64_t first_query) {
  changing().slide_window(sequence, first_query);
}

void PageAllocator::give_up_before(SequenceId sequence, std::int64_t first) {
  changing().give_up_before(sequence, first);
}

SequenceId PageAllocator::fork(SequenceId sequence) { return changing().fork(sequence); }

void PageAllocator::truncate(SequenceId sequence, std::int64_t length) {
  changing().truncate(sequence, length);
}

void PageAllocator::check_truncate(SequenceId sequence, std::int64_t length) const {
  of(state_).check_truncate(sequence, length);
}

void PageAllocator::erase(SequenceId sequence) { changing().erase(sequence); }

PrefixRules PageAllocator::prefix_rules() const { return of(state_).prefix_rules(); }

PrefixMatch PageAllocator::match_prefix(const PrefixKey& key, std::int64_t most) {
  return changing().match_prefix(key, most);
}

std::int64_t PageAllocator::cached_tokens(const PrefixKey& key, std::int64_t most) {
  return of(state_).find_prefix(key, most).tokens;
}

SequenceId PageAllocator::create_with_prefix(const PrefixMatch& match) {
  return changing().create_with_prefix(match);
}

void PageAllocator::release(const PrefixMatch& match) { changing().release(match); }

void PageAllocator::publish(SequenceId sequence, const PrefixKey& key,
                            std::span<const Retention> retentions) {
  changing().publish(sequence, key, retentions);
}

void PageAllocator::check_publish(SequenceId sequence, const PrefixKey& key,
                                  std::span<const Retention> retentions) const {
  of(state_).check_publish(sequence, key, retentions);
}

PrefixMatch PageAllocator::bring_back(const PrefixKey& key, std::int64_t pages,
                                      std::span<const PageRank> homes) {
  return changing().bring_back(key, pages, homes);
}

PageId PageAllocator::published_page(const PageHash& hash) const {
  const PrefixCache* prefixes = of(state_).prefixes();
  const PageSlot slot = prefixes != nullptr ? prefixes->find(hash) : kNoSlot;
  return slot == kNoSlot ? PageId{} : prefixes->page(slot);
}

const PageHash& PageAllocator::page_hash(PageId page) const {
  require(of(state_).prefixes() != nullptr && of(state_).pools().contains(page),
          "prefix: no page {}:{} that could be published", page.rank().value, page.index());
  return of(state_).prefixes()->hash(page);
}

std::vector<PageId> PageAllocator::published_pages() const {
  return of(state_).prefixes() != nullptr ? of(state_).prefixes()->published()
                                          : std::vector<PageId>{};
}

std::int64_t PageAllocator::cached_pages() const { return of(state_).pools().cached_pages(); }
std::int64_t PageAllocator::cached_pages(PageRank rank) const {
  of(state_).check_rank(rank);
  return of(state_).pools().cached_pages(rank);
}
std::int64_t PageAllocator::evicted_pages() const { return of(state_).pools().evicted_pages(); }

Result<Done> PageAllocator::can_resize(PageRank rank, std::int64_t pages) const {
  return of(state_).can_resize(rank, pages);
}

std::vector<PageCopy> PageAllocator::start_resize(PageRank rank, std::int64_t pages) {
  return try_start_resize(rank, pages).value();
}

Result<std::vector<PageCopy>> PageAllocator::try_start_resize(PageRank rank, std::int64_t pages) {
  return starting_moves().try_start_resize(rank, pages);
}

std::vector<PageCopy> PageAllocator::start_rebalance(std::int64_t limit) {
  return starting_moves().start_rebalance(limit);
}

std::vector<PageCopy> PageAllocator::start_rebalance_now(const RebalanceOptions& options) {
  return starting_moves().start_rebalance_now(options);
}

std::int64_t PageAllocator::finish_moves() { return of(state_).finish_moves(); }
void PageAllocator::give_up_moves() { of(state_).give_up_moves(); }
void PageAllocator::cancel_moves() { of(state_).cancel_moves(); }

std::int64_t PageAllocator::pool_pages(PageRank rank) const {
  of(state_).check_rank(rank);
  return of(state_).pools().size(rank);
}

bool PageAllocator::contains(SequenceId sequence) const {
  return of(state_).sequences().find(sequence) != nullptr;
}

std::int64_t PageAllocator::length(SequenceId sequence) const {
  return of(state_).sequences().at(sequence).length;
}

std::int64_t PageAllocator::capacity(SequenceId sequence) const {
  return of(state_).capacity(of(state_).sequences().at(sequence));
}

std::span<const PageId> PageAllocator::pages(SequenceId sequence) const {
  return of(state_).sequences().at(sequence).pages;
}

std::int64_t PageAllocator::released_pages(SequenceId sequence) const {
  return of(state_).sequences().at(sequence).placement.released;
}

std::int64_t PageAllocator::first_kept(SequenceId sequence) const {
  return of(state_).first_kept(of(state_).sequences().at(sequence));
}

std::int64_t PageAllocator::sequences() const { return of(state_).sequences().size(); }

std::uint64_t PageAllocator::version(SequenceId sequence) const {
  return of(state_).sequences().at(sequence).version;
}

std::int64_t PageAllocator::free_pages() const { return of(state_).pools().free_pages(); }

std::int64_t PageAllocator::free_pages(PageRank rank) const {
  of(state_).check_rank(rank);
  return of(state_).pools().free_pages(rank);
}

std::int32_t PageAllocator::reference_count(PageId page) const {
  return pools_with(page, state_).reference_count(page);
}

bool PageAllocator::is_writable(PageId page) const {
  return pools_with(page, state_).writable(page);
}

bool PageAllocator::is_moving(PageId page) const {
  return pools_with(page, state_).is_moving(page);
}

std::uint32_t PageAllocator::generation(PageId page) const {
  return pools_with(page, state_).generation(page);
}

bool PageAllocator::is_current(PageId page, std::uint32_t generation) const {
  const PagePools& pools = of(state_).pools();
  return pools.contains(page) && (pools.in_use(page) || pools.is_cached(page)) &&
         pools.generation(page) == generation;
}

std::uint64_t PageAllocator::digest() const { return of(state_).journal().digest(); }

std::vector<JournalEntry> PageAllocator::journal() const { return of(state_).journal().entries(); }

ChangeCursor PageAllocator::follow() { return of(state_).changes().follow(); }

ChangeRun PageAllocator::read_changes(ChangeCursor& cursor) const {
  return std::as_const(of(state_)).changes().read(cursor);
}

EvictionCursor PageAllocator::follow_evictions() { return of(state_).evictions().follow(); }

std::span<const PageId> PageAllocator::read_evictions(EvictionCursor& cursor) const {
  return std::as_const(of(state_)).evictions().read(cursor);
}

void PageAllocator::verify_integrity() const {
  const Moving moving = of(state_).moving();
  check_integrity(of(state_).pools(), of(state_).sequences(), options().page_size,
                  {.moves = of(state_).moves(),
                   .pins = of(state_).pins(),
                   .has_destinations = moving != Moving::kGivenUp,
                   .is_beside = moving == Moving::kBeside || moving == Moving::kGivenUp});
  if (const PrefixCache* prefixes = of(state_).prefixes())
    check_prefixes(of(state_).pools(), of(state_).sequences(), *prefixes);
}

}  // namespace kvmesh
