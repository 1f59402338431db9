// The moves of pages that go on beside the steps.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "kvmesh/kv_cache.hpp"
#include "runtime/cache/cache_group.hpp"
#include "runtime/cache/moves/side_copies.hpp"
#include "runtime/memory/attempt.hpp"
#include "runtime/tiers/tier.hpp"

namespace kvmesh {

/// A state machine that all ranks advance together, by an exchange of how far each of them is:
///
///   none      nothing moves
///   waiting   the allocators have ordered moves; each rank waits for the work that was on its
///             stream, and packs what it sends
///   copying   the copies are being made
///   given up  the destinations were given back, and the sources of copies that had not begun;
///             copies that were started go on
///
///   none -> waiting           order and start, on every rank
///   waiting -> copying        all ranks' work is done
///   copying -> none           all ranks' copies are made: the page tables change
///   waiting, copying          a rank's copy has failed, or an operation needs the pages: the
///     -> given up             latter happens on all ranks at the same operation, without a message
///   given up -> none          all ranks' copies have ended: the sources can be used again
///
/// No rank writes to a page that another one may still read: the allocators keep the sources in
/// place until the end. A destination that was given back may be written by a late copy of its own
/// rank, so that rank orders later work on its pages after that copy (`before`, `wait`).
class SideMoves {
 public:
  /// REQUIRES: all references outlive it.
  SideMoves(Mesh& mesh, std::deque<CacheGroup>& groups, const PoolStorage& pools,
            const PeerPools& peers);

  bool is_under_way() const { return phase_ != Phase::kNone; }
  /// Whether pages are taken that other operations could use (give_up).
  bool has_destinations() const { return phase_ == Phase::kWaiting || phase_ == Phase::kCopying; }
  /// How many pages of a group `give_up` makes usable: the destinations, and pages that nobody
  /// holds but a move that no rank has begun.
  std::int64_t pages_to_give_up(std::size_t group) const;

  /// Orders moves in the allocators. Returns whether there are some. REQUIRES: none are under way.
  bool order(const RebalanceOptions& options);
  /// Keeps the failures of this rank's steps for the ordered moves, until the next `proceed`
  /// exchanges them.
  Attempt& attempt() { return attempt_; }
  /// The copies begin after the work on `after`, and after `jobs` of tiers.
  void start(std::optional<Stream> after, std::vector<TierJob> jobs);
  /// Advances as far as all ranks are. If a step or a copy has failed on a rank, all give the moves
  /// up. @throws the failure of this rank; Error if another rank has one.
  /// Collective over the world if moves are under way.
  void proceed();
  /// Gives the destinations back, because an operation needs pages. Call it on every rank, at the
  /// same operation. Waits for nothing.
  void give_up();
  /// Completes the moves that are under way. Blocks. Collective and @throws as proceed; also
  /// Timeout.
  void complete();
  /// Returns the pages that have moved since the last call, and those under way.
  MoveProgress take_progress();

  /// Later work on `stream` runs after moves that were given up. On the CPU the call blocks until
  /// they are done.
  void before(Stream stream) {
    if (phase_ == Phase::kGivenUp) copies_.before(stream);
  }
  /// Blocks until moves that were given up are done. @throws Timeout, Error if the device has
  /// failed.
  void wait(const Communicator& world);
  /// Blocks until no copy is under way, given up or not. @throws as wait.
  void end(const Communicator& world);

 private:
  enum class Phase : std::uint8_t { kNone, kWaiting, kCopying, kGivenUp };
  enum class Standing : std::uint8_t { kUnderWay, kDone, kFailed };

  bool is_done_here();
  std::vector<Standing> standings();
  void advance();
  void begin_copies();
  /// Calls `end(allocator)` for the groups with moves.
  template <class End>
  void end_each(const End& end);

  Mesh& mesh_;
  std::deque<CacheGroup>& groups_;
  Phase phase_ = Phase::kNone;
  std::vector<std::vector<PageCopy>> moves_;  // [group]
  bool holds_sources_ = false;                // of moves that were given up
  std::vector<TierJob> jobs_;                 // whose copies may use the destinations
  Attempt attempt_;                           // of this rank
  std::int64_t moved_ = 0;                    // since take_progress
  SideCopies copies_;
};

}  // namespace kvmesh
