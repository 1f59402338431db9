// The state machine behind PageAllocator.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "allocator/journal.hpp"
#include "allocator/pages/change_log.hpp"
#include "allocator/pages/page_pools.hpp"
#include "allocator/placement.hpp"
#include "allocator/prefix/prefix_cache.hpp"
#include "allocator/sequence_table.hpp"
#include "kvmesh/allocator.hpp"

namespace kvmesh {

class Surplus;

/// How pages are being moved.
enum class Moving : std::uint8_t {
  kNone,
  kAlone,    ///< no other operation changes anything
  kBeside,   ///< beside other operations
  kGivenUp,  ///< as kBeside, without the destinations
};

/// Each operation has two halves. The first checks the arguments, counts the pages that are needed
/// and allocates all memory; it may throw and changes nothing that can be seen. The second takes
/// and gives back pages and cannot fail. The can_ functions are first halves.
class PageAllocator::State {
 public:
  explicit State(const AllocatorOptions& options);

  SequenceId create();
  Result<Done> can_reserve(SequenceId id, std::int64_t tokens);
  Result<Done> can_append(std::span<const AppendRequest> requests);
  Result<Done> can_make_writable(SequenceId id, std::int64_t begin, std::int64_t end);
  Result<Done> try_reserve(SequenceId id, std::int64_t tokens);
  Result<std::vector<PageCopy>> try_append(std::span<const AppendRequest> requests);
  std::int64_t pages_needed(std::span<const AppendRequest> requests) {
    return plan_append(requests);
  }
  Result<std::vector<PageCopy>> try_make_writable(SequenceId id, std::int64_t begin,
                                                  std::int64_t end);
  void slide_window(SequenceId id, std::int64_t first_query);
  void give_up_before(SequenceId id, std::int64_t first);
  SequenceId fork(SequenceId id);
  void truncate(SequenceId id, std::int64_t length);
  void check_truncate(SequenceId id, std::int64_t length) const;
  void erase(SequenceId id);
  PrefixRun find_prefix(const PrefixKey& key, std::int64_t most);
  PrefixMatch match_prefix(const PrefixKey& key, std::int64_t most);
  SequenceId create_with_prefix(const PrefixMatch& match);
  void release(const PrefixMatch& match);
  PrefixMatch bring_back(const PrefixKey& key, std::int64_t pages, std::span<const PageRank> homes);
  void publish(SequenceId id, const PrefixKey& key, std::span<const Retention> retentions);
  void check_publish(SequenceId id, const PrefixKey& key,
                     std::span<const Retention> retentions) const;
  Result<Done> can_resize(PageRank rank, std::int64_t pages) const;
  Result<std::vector<PageCopy>> try_start_resize(PageRank rank, std::int64_t pages);
  std::vector<PageCopy> start_rebalance(std::int64_t limit);
  std::vector<PageCopy> start_rebalance_now(const RebalanceOptions& options);
  std::int64_t finish_moves();
  void give_up_moves();
  void cancel_moves();
  PrefixRules prefix_rules() const {
    return {options_.prefix.hash, tokens_per_hash(), options_.prefix.seed};
  }

  Moving moving() const { return moving_; }
  std::span<const PageCopy> moves() const { return moves_; }
  std::span<const PageId> pins() const { return pins_; }
  void check_rank(PageRank rank) const;
  const AllocatorOptions& options() const { return options_; }
  const PagePools& pools() const { return pools_; }
  const SequenceTable& sequences() const { return sequences_; }
  const PrefixCache* prefixes() const { return prefixes_.get(); }
  const Journal& journal() const { return journal_; }
  ChangeLog& changes() { return changes_; }
  const ChangeLog& changes() const { return changes_; }
  EvictionLog& evictions() { return evictions_; }
  const EvictionLog& evictions() const { return evictions_; }

  std::int64_t capacity(const Sequence& sequence) const {
    return static_cast<std::int64_t>(sequence.pages.size()) * options_.page_size;
  }
  std::int64_t first_kept(const Sequence& sequence) const {
    const SequencePlacement& placement = sequence.placement;
    return std::int64_t{placement.released} * options_.page_size + placement.released_slots;
  }

 private:
  /// A sequence that the batch in progress gives pages to.
  struct Growth {
    SequenceId id;
    Sequence* sequence;
    std::int64_t missing;  // pages
    std::int64_t appends;  // tokens
  };

  /// The sequences whose pages rebalance moves.
  enum class Leveled : std::uint8_t { kWhole, kSpread, kAny };
  struct PoolSize {
    PageRank rank;
    std::int64_t pages;
  };

  std::size_t place(PageId page) const {
    return static_cast<std::size_t>(page.rank().value * options_.pages_per_rank + page.index());
  }
  void prepare_moves(std::int64_t most);
  void order_move(PageId source, PageRank to);
  std::int64_t level(const Sequence& sequence, Leveled kind, std::int64_t most, Surplus& surplus);
  bool moves_whole(std::span<const PageId> pages, const Surplus& surplus, PageRank to) const;
  void pin_cached(PageRank rank, std::int64_t pages);
  bool pin_chain(PageId page, std::int64_t room);
  void unpin();
  void set_pool(PageRank rank, std::int64_t pages);
  bool move_published(const PageCopy& move);
  void relocate(SequenceId id, Sequence& sequence);
  void give_back_destinations();
  void end_moves();

  // Moves beside other operations: side_moves.cpp.
  std::span<const PageId> unwritten_pages(const Sequence& sequence) const;
  std::int64_t order_side_moves(std::int64_t limit, PageRank leaving);
  std::int64_t level_beside(std::int64_t most, Surplus& surplus);
  std::int64_t move_off(PageRank leaving, const Sequence& sequence, std::int64_t most);
  PageRank roomiest_but(PageRank leaving) const;
  void count_at_home(const Sequence& sequence, Surplus& surplus) const;
  std::int64_t bring_home(const Sequence& sequence, std::int64_t most, Surplus& surplus);
  std::int64_t move_beside(Sequence& sequence, Leveled kind, std::int64_t most, Surplus& surplus);
  PageRank next_target(PageRank last, const Surplus& surplus) const;
  void move_cached(PageRank leaving, std::int64_t most);
  void order_side_move(PageId source, PageRank to);
  void mark_holders();

  bool has_states() const { return options_.state_interval > 0; }
  int tokens_per_hash() const {
    return has_states() ? options_.state_interval : options_.page_size;
  }
  std::int64_t pages_for(std::int64_t tokens) const;
  /// The number of leading pages that no query from `first_query` on sees.
  std::int64_t pages_behind(std::int64_t first_query) const;
  bool begins_with_whole_page(SequenceId id, const Sequence& sequence);
  std::int64_t missing_pages(const Sequence& sequence, std::uint64_t tokens) const;
  bool free_for(std::int64_t pages) const { return pages <= pools_.free_pages(); }
  OutOfPages out_of_pages(std::int64_t asked_pages) const {
    return {asked_pages, pools_.free_pages_per_rank()};
  }
  std::int64_t plan_append(std::span<const AppendRequest> requests);
  std::int64_t plan_tail_copies();
  void prepare(Sequence& sequence, std::int64_t missing);
  void grow(SequenceId id, Sequence& sequence, std::int64_t missing);
  std::pair<std::int64_t, std::int64_t> pages_to_own(const Sequence& sequence, std::int64_t begin,
                                                     std::int64_t end) const;
  void check_key(const PrefixKey& key) const;
  /// Returns the sequence that pins a match. @throws UnknownSequence, InvalidArgument.
  Sequence& match(const PrefixMatch& match);
  std::size_t full_pages(const Sequence& sequence, const PrefixKey& key) const;
  Keeping keeping(std::size_t hash, std::span<const Retention> retentions) const;
  std::vector<Keeping> keepings_of(std::size_t pages, std::span<const Retention> retentions) const;
  void fold_in(const Keeping& keeping);
  bool publish_page(SequenceId id, Sequence& sequence, std::size_t logical, const PrefixKey& key,
                    std::size_t hash, const Keeping& keeping);
  void publish_state(SequenceId id, Sequence& sequence, const PrefixKey& key,
                     std::span<const Retention> retentions);
  std::vector<PageId> check_bring_back(const PrefixKey& key, std::int64_t pages,
                                       std::span<const PageRank> homes) const;
  std::size_t first_seen(std::int64_t pages) const;
  void hold_published(Sequence& sequence, std::span<const PageId> run, std::size_t first);
  void take_missing(Sequence& sequence, std::span<const PageId> run, std::size_t first,
                    std::span<const PageRank> homes);
  void take_at(PageRank home, Sequence& sequence, std::size_t logical);
  static void set_anchor(Sequence& sequence, PageId page);
  PageCopy replace(SequenceId id, Sequence& sequence, std::int64_t logical);
  void give_back_sources();
  void log_added(SequenceId id, const Sequence& sequence, std::size_t first);
  void log_dropped(SequenceId id, const Sequence& sequence, std::size_t kept);
  void drop_pages_past(SequenceId id, Sequence& sequence, std::int64_t pages);
  void record(std::string_view operation, SequenceId id, std::uint64_t argument = 0);

  AllocatorOptions options_;
  PagePools pools_;
  SequenceTable sequences_;
  std::unique_ptr<PlacementPolicy> placement_;
  Journal journal_;
  ChangeLog changes_;
  EvictionLog evictions_;
  std::unique_ptr<PrefixCache> prefixes_;  // null: off

  // Moves in progress.
  Moving moving_ = Moving::kNone;
  std::optional<PoolSize> resized_;  // the pool that was resized, with its old size
  std::vector<PageCopy> moves_;
  std::vector<PageId> pins_;  // cached pages that move or must stay, the most recently used first
  std::vector<PageId> targets_;  // [place(page)] where a moving page goes; else invalid

  // Scratch of one operation, kept for its memory; no part of the state.
  std::uint64_t batch_ = 0;
  std::vector<Growth> growths_;
  std::vector<PageId> shared_tails_;
  std::vector<PageId> sources_;  // of copies, to be given back
  std::vector<PageCopy> copies_;
};

}  // namespace kvmesh
