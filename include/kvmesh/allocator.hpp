// The global page allocator: which rank holds which page of which sequence.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvmesh/api.h"
#include "kvmesh/change_log.hpp"
#include "kvmesh/error.hpp"
#include "kvmesh/prefix.hpp"
#include "kvmesh/result.hpp"
#include "kvmesh/types.hpp"

namespace KVMESH_API kvmesh {

/// How new pages are spread over the ranks.
enum class Placement : std::uint8_t {
  kBalanced,  ///< A short sequence on one rank, a long one evenly over all. The default.
  kStriped,   ///< Page i of a sequence on rank (i + start) mod ranks.
  kPacked,    ///< Fill rank 0, then rank 1, ...
};

std::string_view name(Placement placement);
/// Returns the placement called `text` ("balanced", "striped", "packed"). @throws InvalidArgument.
Placement placement_from(std::string_view text);

struct AllocatorOptions {
  int ranks = 1;
  /// The most pages that a rank's pool can have.
  std::int64_t pages_per_rank = 0;
  /// [ranks] the pages that each rank's pool has at first, 0 to pages_per_rank; empty:
  /// pages_per_rank on every rank. start_resize changes them.
  std::vector<std::int64_t> pool_pages{};
  int page_size = 16;
  Placement placement = Placement::kBalanced;
  /// Balanced placement: a sequence of up to this many tokens lies on one home rank, the rank with
  /// the most free pages when the sequence gets its first page. Later pages go to the rank that
  /// holds the fewest of the sequence's pages.
  std::int64_t home_threshold_tokens = 2048;
  /// Part of every SequenceId, so that an allocator refuses the ids of other allocators. REQUIRES:
  /// equal on every rank, and different for each allocator whose ids a program could mix up. 0:
  /// computed from the other options, so that only allocators with equal options accept one
  /// another's ids. (A KvCache draws a number that all its ranks share and no other cache has.) Not
  /// part of the digest.
  std::uint16_t id_space = 0;
  PrefixOptions prefix{};
  /// The number of positions that a query sees, its own included. 0: all before it. With a window,
  /// slide_window gives up pages.
  std::int64_t window = 0;
  /// Not 0: a page holds a state of its sequence instead of tokens, so a sequence has one page, and
  /// keys of the prefix cache have pages of this many tokens. publish then names the sequence's
  /// page by all of its tokens, if they fill such pages, and a match has a state that is of all its
  /// tokens. REQUIRES: page_size is more than any length; no window.
  int state_interval = 0;
};

/// An order to copy the first `tokens` tokens of page `source` to page `destination`, in every
/// layer, before anything is appended: the copy on write of a page that a fork shares, or a page
/// that moves.
struct PageCopy {
  PageId source;
  PageId destination;
  int tokens = 0;
  friend bool operator==(const PageCopy&, const PageCopy&) = default;
};

/// See PageAllocator::start_rebalance_now.
struct RebalanceOptions {
  /// The most pages that move at once. 0: no moves are started.
  std::int64_t limit = 0;
  /// A rank that will be drained: its share of the pages is 0, and sequences that grow get its
  /// pages only if no other rank has any. A negative rank: none is leaving.
  PageRank leaving{-1};
};

/// A request to append `tokens` new positions to `sequence`.
struct AppendRequest {
  SequenceId sequence;
  std::int64_t tokens = 0;
};

/// One line of the allocator's journal: operation `number` (the first is 0) left the state at
/// `digest`. `sequence` is the new sequence for create and fork, the first of the batch for append,
/// else the argument of the operation.
struct JournalEntry {
  std::uint64_t number = 0;
  std::uint64_t digest = 0;
  std::string_view operation;
  SequenceId sequence;
};

/// A deterministic state machine over metadata: it moves no keys and sends no messages. Every rank
/// holds a copy and applies the same operations in the same order. All copies then agree without a
/// message, and `digest()` shows whether they do.
///
/// Positions are logical and start at 0. `length` counts the appended tokens, `capacity` the tokens
/// for which the sequence holds pages: length <= capacity = pages * page_size.
///
/// The page freed last is the first that its rank hands out again. If the rank that the placement
/// chooses is full, another rank provides the page: an operation runs out of pages only if all
/// ranks are full.
///
/// Strong guarantee: an operation that throws (or whose `try_` form returns a reason) has
/// changed nothing. Not thread-safe: one thread drives a copy. Complexity is amortised O(1) per
/// page, but O(ranks) where a rank is chosen: for a sequence's home, for a page that balanced
/// placement adds past the threshold, and where ranks are full.
class PageAllocator {
 public:
  /// @throws InvalidArgument if the options are invalid.
  explicit PageAllocator(const AllocatorOptions& options);
  ~PageAllocator();
  PageAllocator(PageAllocator&&) noexcept;  ///< Calls of one moved from throw InvalidArgument.
  PageAllocator& operator=(PageAllocator&&) noexcept;

  const AllocatorOptions& options() const;

  /// Makes a new, empty sequence.
  SequenceId create();

  /// Makes room for at least `tokens` tokens in all. Does nothing if the capacity is enough.
  /// @throws OutOfPages; UnknownSequence; InvalidArgument if `tokens` is negative. try_reserve
  /// returns OutOfPages instead of throwing it.
  void reserve(SequenceId sequence, std::int64_t tokens);
  Result<Done> try_reserve(SequenceId sequence, std::int64_t tokens);

  /// Lengthens all sequences of the batch or none, and reserves the pages that they lack. A
  /// sequence's last page is copied if it is not full and a fork shares it, it is published, or it
  /// is moving. The copy stays on the page's rank while that rank has a free page: the batch's
  /// copies take theirs before sequences grow. When all sequences that share a page are in the
  /// batch, the last of them keeps the page, unless it is published or moving.
  /// REQUIRES: no sequence appears twice.
  /// Returns the copies to make before anything is written.
  /// @throws OutOfPages (with all the pages that the batch needs, copies included),
  /// UnknownSequence, InvalidArgument. try_append returns OutOfPages instead of throwing it.
  std::vector<PageCopy> append(std::span<const AppendRequest> requests);
  std::vector<PageCopy> append(SequenceId sequence, std::int64_t tokens);
  Result<std::vector<PageCopy>> try_append(std::span<const AppendRequest> requests);
  /// Returns how many pages `append` would take, copies included: it succeeds if free_pages() is at
  /// least that. Changes nothing. @throws UnknownSequence, InvalidArgument.
  std::int64_t pages_needed(std::span<const AppendRequest> requests) const;

  /// Makes positions [begin, end) of the sequence writable in place: replaces every page there that
  /// a fork shares, that is published or that is moving by a page that only this sequence holds. If
  /// there is a published one, the sequence's later published pages, too.
  /// REQUIRES: 0 <= begin <= end <= capacity.
  /// Returns the copies to make before anything is written.
  /// @throws OutOfPages, UnknownSequence, InvalidArgument. try_make_writable returns OutOfPages
  /// instead of throwing it.
  std::vector<PageCopy> make_writable(SequenceId sequence, std::int64_t begin, std::int64_t end);
  Result<std::vector<PageCopy>> try_make_writable(SequenceId sequence, std::int64_t begin,
                                                  std::int64_t end);

  /// Returns what the try_ form would return instead of a value, or Done if it would succeed. Takes
  /// the memory that the operation needs, and changes nothing else. For callers that apply one
  /// operation to several allocators, or to none.
  /// @throws as the operations.
  Result<Done> can_reserve(SequenceId sequence, std::int64_t tokens);
  Result<Done> can_append(std::span<const AppendRequest> requests);
  Result<Done> can_make_writable(SequenceId sequence, std::int64_t begin, std::int64_t end);

  /// Gives up the pages whose positions are all behind the window of a query at `first_query`, the
  /// earliest query to come: their entries of the page table become invalid. A page is free when no
  /// sequence holds it; a published one is cached. Not part of the digest if there is no such page.
  /// REQUIRES: AllocatorOptions::window; 0 <= first_query <= length.
  /// @throws UnknownSequence, InvalidArgument.
  void slide_window(SequenceId sequence, std::int64_t first_query);
  /// Gives up the positions before `first`, as slide_window does: their pages, and the first slots
  /// of the page that has `first`, since nothing may have been written there. That page is not
  /// published. Not part of the digest if they are given up already. REQUIRES:
  /// AllocatorOptions::window; 0 <= first <= length.
  /// @throws UnknownSequence, InvalidArgument.
  void give_up_before(SequenceId sequence, std::int64_t first);

  /// Makes a new sequence with the same content. It shares all pages that hold content, copy on
  /// write, but not pages that are only reserved. It needs no page, so it cannot run out of pages.
  /// @throws UnknownSequence.
  SequenceId fork(SequenceId sequence);

  /// Shortens the sequence to `length` tokens (to roll back speculation) and frees all pages past
  /// them (published ones are cached), including pages that were only reserved: the capacity
  /// becomes `length`, rounded up to whole pages.
  /// @throws UnknownSequence; InvalidArgument if `length` is negative or more than the sequence
  /// has, or, unless it is 0, so few that positions in the window of the next query are given up.
  void truncate(SequenceId sequence, std::int64_t length);
  /// Throws what truncate would.
  void check_truncate(SequenceId sequence, std::int64_t length) const;

  /// Erases the sequence and frees the pages that no fork shares; published ones are cached.
  /// @throws UnknownSequence.
  void erase(SequenceId sequence);

  /// Returns the rules by which keys for this allocator are made.
  PrefixRules prefix_rules() const;

  /// Finds the longest run of published pages with at most `most` of the key's tokens, on whichever
  /// ranks they are, and pins it. The run may end with the first tokens of a page. With a window,
  /// it ends with a whole page, and has only the pages that the next query sees. With states, it
  /// ends where a state was published, and has that state alone. REQUIRES: the prefix cache is
  /// enabled; the key has this allocator's rules.
  /// @throws InvalidArgument.
  PrefixMatch match_prefix(const PrefixKey& key, std::int64_t most = kAllTokens);
  /// The tokens of the run that match_prefix would find. @throws InvalidArgument.
  std::int64_t cached_tokens(const PrefixKey& key, std::int64_t most = kAllTokens);
  static constexpr std::int64_t kAllTokens = std::numeric_limits<std::int64_t>::max();
  /// Makes a sequence of a match, which ends: its pages, copy on write, and its length.
  /// @throws UnknownSequence if the match was released; InvalidArgument if a sequence was made of
  /// it.
  SequenceId create_with_prefix(const PrefixMatch& match);
  SequenceId create_with_prefix(const PrefixKey& key) {
    return create_with_prefix(match_prefix(key));
  }
  /// Ends a match that is not used. @throws as create_with_prefix.
  void release(const PrefixMatch& match);

  /// Makes the sequence's full pages known to later matches. Where another sequence has published
  /// the same page, the sequence shares that one and gives up its own: its version changes. A
  /// published page is never written; when its last sequence leaves it, it is cached until its room
  /// is needed. Pages that a fork shares before they are published wait until one sequence is left,
  /// so publish before you fork. A sequence that begins within a page (give_up_before) gives that
  /// page up; while the next query sees some of it, nothing is published. REQUIRES: the key's
  /// tokens are those of the sequence's first positions, and their keys and values are written, or
  /// will be before later work reads them.
  /// @throws UnknownSequence; InvalidArgument if the prefix cache is off, the key has other rules,
  /// or other tokens than pages that the sequence has published.
  void publish(SequenceId sequence, const PrefixKey& key,
               std::span<const Retention> retentions = {});
  /// Throws what publish would.
  void check_publish(SequenceId sequence, const PrefixKey& key,
                     std::span<const Retention> retentions = {}) const;

  /// Pins a match of the key's first `pages` full pages, although some are not published any more:
  /// of those that the next query sees, each takes a page for the next element of `homes`, on that
  /// rank, or, if the rank is negative or has no free page, where placement puts it. The caller
  /// brings their contents back from elsewhere, and then calls `publish(match.pin, key)`; or gives
  /// the match up by `release`. REQUIRES: pages hold tokens.
  /// @throws OutOfPages; InvalidArgument as match_prefix, for another number of homes than there
  /// are pages to bring back, and for a rank that does not exist.
  PrefixMatch bring_back(const PrefixKey& key, std::int64_t pages, std::span<const PageRank> homes);
  /// Returns the page that is published under the hash, held or cached; an invalid one if there is
  /// none, or if the prefix cache is off.
  PageId published_page(const PageHash& hash) const;
  /// Returns the hash under which the page is published; of an evicted page the one under which it
  /// was, until the page is published again. @throws InvalidArgument if the prefix cache is off or
  /// the page is in no pool.
  const PageHash& page_hash(PageId page) const;
  /// Returns all published pages, held or cached, in the order of their ids. O(pages).
  std::vector<PageId> published_pages() const;

  /// Pages move in two steps. start_rebalance or start_resize orders copies to free pages, which it
  /// takes. While the copies are made, every page keeps its place and its content: all calls that
  /// change something throw InvalidArgument. finish_moves then puts the copies into the page
  /// tables, frees the pages that were copied, and makes the versions of their sequences new.
  /// cancel_moves gives the copies' pages up instead, and pools have their old sizes.
  ///
  /// start_rebalance moves at most `limit` pages, from ranks of which a larger part is held than of
  /// all ranks together to ranks of which a smaller part is: with a large enough limit each rank
  /// holds its share, rounded to a page. Short sequences move as a whole where they fit.
  /// Returns the copies to make. @throws InvalidArgument for a negative limit.
  std::vector<PageCopy> start_rebalance(std::int64_t limit);
  /// Gives the rank's pool `pages` pages: those with an index below. Pages past them that sequences
  /// hold move, within the rank as far as there is room. So do cached ones, those used last first,
  /// while all ranks together have room for them; the others are evicted. A pool of 0 pages is
  /// drained.
  /// Returns the copies to make.
  /// @throws InvalidArgument for a size that is not in [0, pages_per_rank]; OutOfPages if the pools
  /// have too few free pages for those that move. try_start_resize returns OutOfPages instead of
  /// throwing it, can_resize returns it without a change.
  std::vector<PageCopy> start_resize(PageRank rank, std::int64_t pages);
  Result<std::vector<PageCopy>> try_start_resize(PageRank rank, std::int64_t pages);
  Result<Done> can_resize(PageRank rank, std::int64_t pages) const;
  /// Orders copies as start_rebalance does, for moves beside other operations: until finish_moves
  /// or cancel_moves, all calls but those that start moves do what they always do. Only pages that
  /// are full of tokens move, which steps do not write; with a rank that is leaving, its cached
  /// pages, too, to where nothing is evicted for them. A short sequence's other pages follow it in
  /// later calls. States do not move.
  ///
  /// Ranks are levelled if one holds over a 64th more than its share or lacks over an eighth of it;
  /// with shares of fewer than 64 pages they are levelled as start_rebalance does. Without this
  /// slack, where sequences come and go, pages would move in nearly every call, for a balance that
  /// steps do not notice. The limit may end the levelling earlier. Full pages leave a rank that is
  /// leaving as long as any other has a free one.
  ///
  /// A page that is being copied is not writable in place: a sequence that writes to it gets a copy
  /// of it. Its place is not handed out again before the moves end; a page that is freed or evicted
  /// meanwhile counts as free from then on. finish_moves changes the page tables and the entry of
  /// the prefix cache that still have the page; if none has it, the move has no effect. The
  /// versions of sequences that hold such pages change in both calls, so plans made before this
  /// call do not write to them.
  ///
  /// The leaving rank stays so, for placement and these moves, until a call says otherwise, or a
  /// start_resize of it is finished.
  /// If no page is to move, no moves are in progress afterwards. O(all pages that sequences hold).
  /// @throws InvalidArgument for a negative limit, and for a rank that does not exist.
  std::vector<PageCopy> start_rebalance_now(const RebalanceOptions& options);
  /// Gives up the pages that moves of start_rebalance_now copy to, because an operation needs them.
  /// The pages that were copied are not handed out before cancel_moves: call that when no copy is
  /// under way.
  /// @throws InvalidArgument without moves of start_rebalance_now, and if they were given up.
  void give_up_moves();
  /// Returns how many pages have moved. @throws InvalidArgument if no moves were started, and if
  /// they were given up.
  std::int64_t finish_moves();
  /// @throws InvalidArgument if no moves were started.
  void cancel_moves();
  /// The pages of the rank's pool. @throws InvalidArgument if there is no such rank.
  std::int64_t pool_pages(PageRank rank) const;

  bool contains(SequenceId sequence) const;
  /// The length and the capacity in tokens. @throws UnknownSequence.
  std::int64_t length(SequenceId sequence) const;
  std::int64_t capacity(SequenceId sequence) const;
  /// The page table in logical order. The span is valid until the next operation on the allocator.
  /// @throws UnknownSequence.
  std::span<const PageId> pages(SequenceId sequence) const;
  /// The number of leading pages that were given up, and the first position that was not.
  /// @throws UnknownSequence.
  std::int64_t released_pages(SequenceId sequence) const;
  std::int64_t first_kept(SequenceId sequence) const;
  std::int64_t sequences() const;
  /// A number that changes whenever the sequence's content or the pages that hold it change: when
  /// tokens are appended, the length shrinks, or a page is copied on write. Operations on other
  /// sequences do not change it, nor does a fork of this sequence.
  /// @throws UnknownSequence.
  std::uint64_t version(SequenceId sequence) const;

  /// The pages that operations can use: free, or cached and thus evictable.
  std::int64_t free_pages() const;
  std::int64_t free_pages(PageRank rank) const;
  /// The free pages that are kept for their content although no sequence holds them.
  std::int64_t cached_pages() const;
  std::int64_t cached_pages(PageRank rank) const;
  /// The number of cached pages that were evicted so far.
  std::int64_t evicted_pages() const;
  /// The number of sequences that hold the page; 0 for a free or cached page.
  std::int32_t reference_count(PageId page) const;
  /// Returns whether one sequence holds the page, it is not published, and it is not being copied.
  bool is_writable(PageId page) const;
  /// Returns whether a move of start_rebalance_now copies the page.
  bool is_moving(PageId page) const;
  /// The number of times the page was handed out.
  std::uint32_t generation(PageId page) const;
  /// A PageId names a place, which may have other content later. Returns whether the place has been
  /// held or cached without a break since `generation(page)` returned `generation`, so it is false
  /// for a page that was freed, evicted, moved or handed out again, and for one in no pool.
  /// REQUIRES: the page was held or cached then.
  bool is_current(PageId page, std::uint32_t generation) const;

  /// A hash of the history, O(1): of the options (without id_space), of every operation that
  /// succeeded with its arguments, even if it changed nothing, and of every page handed out or
  /// freed, in order. Equal on all ranks if all applied the same operations. As soon as one did
  /// not, the digests differ, except with a probability of 2^-64.
  std::uint64_t digest() const;
  /// The last operations (at most 256), oldest first: compare them when digests differ.
  std::vector<JournalEntry> journal() const;

  /// Adds a follower of the change log: every later operation appends its changes of page tables.
  /// Returns a cursor after the last change. The log keeps about as many changes as there are
  /// pages, at most 2^18.
  ChangeCursor follow();
  /// Returns the changes at the cursor, as many as lie in one piece, and moves the cursor past
  /// them. Call it until it returns no changes. The span is valid until the next operation.
  ChangeRun read_changes(ChangeCursor& cursor) const;

  /// Adds a follower of evictions: cached pages that later operations evict are listed. Returns a
  /// cursor after the last of them. The list has room for all pages of all pools, and no operation
  /// evicts a page twice: a follower that reads after every operation misses no page, however many
  /// one operation evicts.
  EvictionCursor follow_evictions();
  /// Returns the evicted pages at the cursor, in the order of their eviction (children before their
  /// parents), as many as lie in one piece, and moves the cursor past them. Call it until it
  /// returns none. `page_hash` has the hash of each until the page is published again. The span is
  /// valid until the next operation.
  std::span<const PageId> read_evictions(EvictionCursor& cursor) const;

  /// Checks every invariant by recomputing it, O(state). @throws Error naming the first broken one.
  void verify_integrity() const;

 private:
  class State;
  /// @throws InvalidArgument while pages are being moved, but not by start_rebalance_now.
  State& changing();
  /// @throws InvalidArgument while pages are being moved.
  State& starting_moves();
  std::unique_ptr<State> state_;
};

}  // namespace kvmesh
