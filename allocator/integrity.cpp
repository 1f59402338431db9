#include "allocator/integrity.hpp"

#include <utility>
#include <vector>

#include "core/check.hpp"

namespace kvmesh {
namespace {

template <class... Args>
void ensure(bool ok, fmt::format_string<Args...> message, Args&&... args) {
  if (!ok) throw Error("allocator integrity: " + fmt::format(message, std::forward<Args>(args)...));
}

void check_free_list(const PagePools& pools, PageRank rank) {
  const std::int64_t expected = pools.free_pages(rank) - pools.cached_pages(rank);
  std::int64_t listed = 0;
  for (PageId page = pools.first_free(rank); page.valid(); page = pools.next_free(page)) {
    ensure(page.rank() == rank && pools.contains(page),
           "rank {}'s free list leaves the pool after {} pages", rank.value, listed);
    ensure(!pools.in_use(page) && !pools.is_cached(page) && !pools.is_moving(page),
           "page {}:{} is on the free list and in use", rank.value, page.index());
    ensure(++listed <= expected, "rank {}'s free list is longer than its {} free pages", rank.value,
           expected);
  }
  ensure(listed == expected, "rank {} lists {} free pages and counts {}", rank.value, listed,
         expected);

  // The list never visits a page twice (it would not end), so equal counts mean equal sets.
  std::int64_t unused = 0;
  std::int64_t cached = 0;
  for (std::int32_t index = 0; index < pools.pages_per_rank(); ++index) {
    const PageId page{rank, index};
    const bool is_moving = pools.is_moving(page);
    cached += pools.is_cached(page) && !is_moving ? 1 : 0;
    unused +=
        pools.in_use(page) || pools.is_cached(page) || pools.is_closed(page) || is_moving ? 0 : 1;
    ensure(!pools.is_closed(page) || index >= pools.size(rank),
           "page {}:{} is closed in a pool of {}", rank.value, index, pools.size(rank));
    ensure(!pools.is_cached(page) || index < pools.size(rank),
           "page {}:{} is cached in a pool of {}", rank.value, index, pools.size(rank));
  }
  ensure(cached == pools.cached_pages(rank), "rank {} has {} cached pages and counts {}",
         rank.value, cached, pools.cached_pages(rank));
  ensure(unused == expected, "rank {} has {} unused pages and counts {} free", rank.value, unused,
         expected);
}

/// For each page the logical index in the page tables, and the number of tables that have it.
struct Use {
  std::int64_t logical = 0;
  std::int32_t count = 0;
  bool is_leaving = false;
};

class TableCheck {
 public:
  TableCheck(const PagePools& pools, int page_size)
      : pools_(pools),
        page_size_(page_size),
        uses_(static_cast<std::size_t>(pools.ranks() * pools.pages_per_rank())) {}

  void check_sequence(SequenceId id, const Sequence& sequence) {
    const auto pages = static_cast<std::int64_t>(sequence.pages.size());
    ensure(sequence.length >= 0 && sequence.length <= pages * page_size_,
           "sequence {} has {} tokens in {} pages", id, sequence.length, pages);
    const std::int64_t released = sequence.placement.released;
    ensure(released >= 0 && released <= pages, "sequence {} has released {} of {} pages", id,
           released, pages);
    const std::int32_t slots = sequence.placement.released_slots;
    ensure(slots >= 0 && slots < page_size_ && released * page_size_ + slots <= sequence.length,
           "sequence {} of {} tokens has released {} pages and {} slots", id, sequence.length,
           released, slots);
    for (std::int64_t logical = 0; logical < released; ++logical)
      ensure(!sequence.pages[static_cast<std::size_t>(logical)].valid(),
             "page {} of sequence {} is released and in the table", logical, id);
    for (std::int64_t logical = released; logical < pages; ++logical)
      check_page(id, sequence, logical);
    check_counts(id, sequence);
  }

  /// A destination counts as one use. A source may be past the end of its pool.
  void add_moves(const MovesUnderWay& under_way) {
    for (const PageCopy& move : under_way.moves) {
      uses_[at(move.source)].is_leaving = true;
      if (!under_way.has_destinations) continue;
      ensure(uses_[at(move.destination)].count++ == 0 && !pools_.is_kept(move.destination),
             "page {}:{} is the destination of a move and in use", move.destination.rank().value,
             move.destination.index());
    }
  }

  /// REQUIRES: add_moves.
  void check_marks(bool is_beside) const {
    for (int rank = 0; rank < pools_.ranks(); ++rank)
      for (std::int32_t index = 0; index < pools_.pages_per_rank(); ++index) {
        const PageId page{PageRank{rank}, index};
        ensure(pools_.is_moving(page) == (is_beside && uses_[at(page)].is_leaving),
               "page {}:{} is either marked as moving or the source of a move, not both", rank,
               index);
      }
  }

  void add_pins(std::span<const PageId> pins) {
    for (const PageId page : pins)
      ensure(uses_[at(page)].count++ == 0 && pools_.is_kept(page),
             "page {}:{} is pinned for a move and not cached", page.rank().value, page.index());
  }

  void check_references() const {
    for (int rank = 0; rank < pools_.ranks(); ++rank)
      for (std::int32_t index = 0; index < pools_.pages_per_rank(); ++index) {
        const PageId page{PageRank{rank}, index};
        const std::int32_t count = uses_[at(page)].count;
        ensure(count == 0 || index < pools_.size(page.rank()) || uses_[at(page)].is_leaving,
               "page {}:{} is held in a pool of {}", rank, index, pools_.size(page.rank()));
        ensure(pools_.reference_count(page) == count,
               "page {}:{} counts {} references and {} sequences hold it", rank, index,
               pools_.reference_count(page), count);
      }
  }

 private:
  void check_page(SequenceId id, const Sequence& sequence, std::int64_t logical) {
    const PageId page = sequence.pages[static_cast<std::size_t>(logical)];
    ensure(page.valid() && pools_.contains(page), "page {} of sequence {} is not in any pool",
           logical, id);
    ensure(pools_.in_use(page) && pools_.generation(page) > 0,
           "page {} of sequence {} was not handed out", logical, id);
    Use& use = uses_[at(page)];
    ensure(use.count == 0 || use.logical == logical,
           "page {}:{} is logical page {} of one sequence and {} of sequence {}", page.rank().value,
           page.index(), use.logical, logical, id);
    use.logical = logical;
    ++use.count;
    if (!pools_.shared(page) && !pools_.is_moving(page)) return;
    ensure(sequence.may_share, "sequence {} shares page {} without its flag", id, logical);
    ensure(logical * page_size_ < sequence.length,
           "sequence {} shares page {}, which has no content of it", id, logical);
  }

  std::size_t at(PageId page) const {
    return static_cast<std::size_t>(page.rank().value * pools_.pages_per_rank() + page.index());
  }

  void check_counts(SequenceId id, const Sequence& sequence) const {
    const SequencePlacement& placement = sequence.placement;
    ensure(placement.anchor >= SequencePlacement::kNone && placement.anchor < pools_.ranks(),
           "sequence {} starts on rank {}", id, placement.anchor);
    if (!placement.pages_on) return;
    std::vector<std::int32_t> held(static_cast<std::size_t>(pools_.ranks()), 0);
    for (PageId page : sequence.held_pages()) ++held[static_cast<std::size_t>(page.rank().value)];
    for (int rank = 0; rank < pools_.ranks(); ++rank)
      ensure(held[static_cast<std::size_t>(rank)] == placement.pages_on[rank],
             "sequence {} holds {} pages on rank {} and counts {}", id,
             held[static_cast<std::size_t>(rank)], rank, placement.pages_on[rank]);
  }

  const PagePools& pools_;
  std::int64_t page_size_;
  std::vector<Use> uses_;  // [ranks * pages_per_rank]
};

void check_slots(const SequenceTable& sequences) {
  std::int64_t living = 0;
  sequences.for_each([&](SequenceId, const Sequence&) { ++living; });
  ensure(living == sequences.size(), "{} sequences exist and {} are counted", living,
         sequences.size());
  const std::int64_t empty = sequences.count_empty_slots();
  ensure(living + empty + sequences.retired_slots() == sequences.slots(),
         "of {} slots {} are in use, {} listed as empty and {} retired", sequences.slots(), living,
         empty, sequences.retired_slots());
}

}  // namespace

void check_integrity(const PagePools& pools, const SequenceTable& sequences, int page_size,
                     const MovesUnderWay& under_way) {
  std::int64_t free = 0;
  for (PageRank rank{0}; rank.value < pools.ranks(); ++rank.value) {
    check_free_list(pools, rank);
    free += pools.free_pages(rank);
  }
  ensure(free == pools.free_pages(), "the ranks have {} free pages and the pools count {}", free,
         pools.free_pages());
  check_slots(sequences);
  TableCheck tables(pools, page_size);
  sequences.for_each(
      [&](SequenceId id, const Sequence& sequence) { tables.check_sequence(id, sequence); });
  tables.add_moves(under_way);
  tables.check_marks(under_way.is_beside);
  tables.add_pins(under_way.pins);
  tables.check_references();
}

}  // namespace kvmesh
