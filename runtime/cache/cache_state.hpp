// The state of a rank's KvCache.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <vector>

#include "kvmesh/kv_cache.hpp"
#include "runtime/cache/cache_group.hpp"
#include "runtime/cache/cache_tiers.hpp"
#include "runtime/cache/side_moves.hpp"
#include "runtime/cache/staging.hpp"
#include "runtime/memory/attempt.hpp"
#include "runtime/memory/cache_agreement.hpp"
#include "runtime/memory/peer_pools.hpp"
#include "runtime/step/plan_agreement.hpp"

namespace kvmesh {

/// An object that points into a cache's state. It is notified before the state is destroyed.
class CacheUser {
 public:
  virtual void cache_ends() noexcept = 0;

 protected:
  ~CacheUser() = default;
};

class KvCache::State {
 public:
  State(Mesh mesh, const CacheAgreement& agreed);
  ~State();
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  Mesh mesh;  // shared with the caller's, which may move or end
  CacheOptions options;
  PoolStorage pools;
  PeerPools peers;
  std::deque<CacheGroup> groups;
  std::vector<std::size_t> group_of_layer;
  std::vector<PoolSizes> pool_sizes;    // [page rank]
  std::vector<AppendRequest> requests;  // of the last batch; kept for its memory
  std::set<CacheUser*> users;           // the plans
  PlanHistory history;                  // of all plans and replans
  std::unique_ptr<CacheTiers> tiers;    // null: none
  Staging staging;                      // of exports and imports
  SideMoves side_moves;

  /// Stores what an operation has evicted. Call it before anything is written to the pages that the
  /// operation took. `after` as in CacheTiers::pages_taken.
  void pages_taken(std::optional<Stream> after = {}) {
    if (tiers) tiers->pages_taken(after);
  }
  /// Gives up moves of rebalance_now, and then loads that match_prefix_now has started, while
  /// `can(group)` of some group is OutOfPages: operations get pages before moves and loads do. If
  /// there are too few pages in any case, nothing is given up: the operation is refused.
  /// @throws the errors of `can`.
  void take_back_pages(const std::function<Result<Done>(std::size_t group)>& can);
  /// Waits until tiers, and moves that were given up, have read and written all pages. Call it
  /// before any use of pages that no stream orders after them.
  void wait_for_move_streams() {
    if (tiers) tiers->wait();
    wait_for_late_moves();
  }
  /// Waits for the late moves alone: those of imports, exports, copies and rebalance_now that were
  /// given up.
  void wait_for_late_moves() {
    staging.wait(mesh.world());
    side_moves.wait(mesh.world());
    for (CacheGroup& group : groups) group.backend->after_late_moves({});
  }
  /// Later work on `stream` runs after the late moves; on the CPU the call waits for them.
  void order_after_late_moves(Stream stream) {
    staging.before(stream);
    side_moves.before(stream);
    for (CacheGroup& group : groups) group.backend->after_late_moves(stream);
  }
  /// Later work on `stream` runs after tiers and late moves; on the CPU as wait_for_move_streams.
  void order_after_move_streams(Stream stream) {
    if (tiers) tiers->before(stream);
    order_after_late_moves(stream);
  }

  CacheGroup& group_of(int layer) { return groups[index_of_group(layer)]; }
  /// @throws InvalidArgument if the layer does not exist.
  std::size_t index_of_group(int layer) const;
  /// One layer's pages as append and attention see them.
  /// @throws InvalidArgument if the layer does not exist or holds states.
  KvPool pool(int layer) { return groups[attention_group(layer)].pool(pools.layer(layer)); }
  /// The group of a layer that has keys and values. @throws as pool.
  std::size_t attention_group(int layer) const;

  /// Returns a hash of the histories of all groups' allocators; with one group, that of its
  /// allocator.
  std::uint64_t digest() const;
  /// Compares the allocators of all ranks, group by group. @throws DigestMismatch. Collective.
  void check_replicas();

  /// Waits until the device has done all its work. @throws as Mesh::wait.
  void wait_idle() { groups[0].backend->wait_idle(); }
  /// Waits, at most for the deadline, until the device has done all its work. Call it before device
  /// calls that wait for all work without a deadline: those would never return if a peer died in
  /// the middle of the work. Does nothing with one kv rank.
  /// @throws Timeout, NcclError.
  void wait_for_peers();
  /// Calls wait_for_peers before memory is freed, and drops the errors.
  void let_go() noexcept;

  /// Returns the slots of these positions for a write to a layer of the group; tokens of other
  /// ranks have a negative page.
  /// @throws UnknownSequence, InvalidArgument.
  std::vector<TokenSlot> slots_of(const CacheGroup& group, SequenceId sequence,
                                  std::span<const std::int64_t> positions) const;

  /// Runs check_step for all groups. @throws InvalidArgument, UnknownSequence.
  std::vector<SequenceSize> check_batch(std::span<const BatchEntry> batch,
                                        const StepRules& rules) const;
  /// Compares the ranks' plans where it is time to, appends the batch's tokens in the allocators,
  /// makes the copies of copy on write and gives up pages behind windows. Returns OutOfPages, with
  /// nothing changed, if a group's pools have too few free pages. `stream` and `attempt` as in
  /// make_copies.
  /// @throws DigestMismatch with nothing changed; Timeout, PeerLost; the failure of a copy, or of
  /// `attempt`, with everything but copies done.
  Result<Done> try_append(std::span<const BatchEntry> batch, std::span<const SequenceSize> sizes,
                          const PlanHashes& hashes, std::optional<Stream> stream = {},
                          Attempt attempt = {});
  void slide_windows(std::span<const BatchEntry> batch, std::span<const SequenceSize> sizes);
  Result<Done> try_make_writable(SequenceId sequence, std::int64_t begin, std::int64_t end,
                                 std::optional<Stream> stream = {});
  /// Makes the copies of copy on write that each group's allocator asks for, which has taken pages
  /// for them. With the stream of the steps the copies within a rank are part of its work; all
  /// others are made on return. The ranks make the copies of each group together, so this rank
  /// keeps a failure in the result: `rethrow` it. If `attempt` has failed before, this rank makes
  /// no copies, and only takes part in the exchanges.
  /// @throws Timeout, PeerLost.
  [[nodiscard]] Attempt make_copies(std::span<const std::vector<PageCopy>> copies,
                                    std::optional<Stream> stream, Attempt attempt = {});
  /// Makes the copies of one group. @throws also the failure of `attempt`, and of copies.
  void make_copies(std::size_t group, std::span<const PageCopy> copies, std::string_view operation,
                   std::optional<Stream> stream, Attempt attempt);

  /// Starts the copies of side moves that were ordered. `after` as in KvCache::rebalance_now.
  void start_side_moves(std::optional<Stream> after);
  /// Starts moves in each group by `start(group, moves)`, which returns copies; `moves` is the
  /// number of pages that move so far. Gives up loads that match_prefix_now has started if their
  /// pages would move.
  template <class Start>
  std::vector<std::vector<PageCopy>> start_moves(const Start& start);
  /// Makes the copies of moves that each group's allocator has started, and finishes the moves. If
  /// a copy fails on any rank, cancels them. Returns how many pages have moved.
  /// @throws the error of this rank's copy; Error if another rank's failed.
  std::int64_t complete_moves(std::span<const std::vector<PageCopy>> copies);
  /// Makes the copies of moves on all ranks. @throws as complete_moves, and the failure of
  /// `attempt`. Collective over the world.
  void copy_moves(std::span<const std::vector<PageCopy>> copies, Attempt attempt);
  /// @throws InvalidArgument if there is no such rank.
  PoolSizes& pool_size(PageRank rank);
  /// Returns the bytes of pools of this many pages.
  std::int64_t pool_bytes(std::int64_t pages) const;
  /// Gives a pool memory for more pages. @throws OutOfMemory, on every rank and with nothing
  /// changed, if the pool of page rank `rank` cannot have `pages` pages. Collective over the world.
  void make_room(PageRank rank, std::int64_t pages);
};

}  // namespace kvmesh
