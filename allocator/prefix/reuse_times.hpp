// How long pages wait for their next use.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "allocator/prefix/open_waits.hpp"
#include "allocator/prefix/trial_cache.hpp"

namespace kvmesh {

/// Learns how much longer a cache should keep pages of one kind than those of another. Its clock is
/// the number of pages published so far.
///
/// Each use of a page starts a wait, which its next use ends, even if the page was evicted
/// meanwhile and only a ghost is left of it. The kind of a page is the number of its hits, or kEnd:
/// it has none, and no page has continued it. Waits are counted by the kind that the page had when
/// they started. The counts give, for a limit on the waits of a kind, the number of pages that
/// wait, which is the room that they take, and the number of hits. The learned credit of a kind is
/// the difference between its limit and that of pages without hits, where the limits of all kinds
/// together fill the pool and give the most hits.
///
/// Learned credits are too small while few long waits were seen. So there are patient credits, too,
/// which are larger for pages with hits and smaller for ends. A TrialCache for each of the two
/// counts the hits that it would have had, and credit() returns the credit of the one with more
/// hits.
///
/// All ranks compute the same, by integers that all of them have.
class ReuseTimes {
 public:
  static constexpr int kMostHits = 3;  ///< more hits count as this many
  static constexpr int kEnd = 4;       ///< the kind of a page without hits that none has continued
  static constexpr int kGhostsOfPage = 16;  ///< ghosts that must be kept per page of the cache

  /// `pages` is the number of pages of all ranks. REQUIRES: later sizes are not larger.
  explicit ReuseTimes(std::int64_t pages);
  void resize(std::int64_t pages) { pages_ = static_cast<std::uint64_t>(pages); }

  std::uint64_t now() const { return now_; }
  void published() {
    if (++now_ == next_) next_cell();
  }
  void started(int kind) {
    ++started_[static_cast<std::size_t>(kind)];
    wait(kind, waits_.current());
  }
  /// The kind of a page changes whose wait started at this time.
  void changed(int from, int to, std::uint64_t start) {
    std::uint64_t& count = started_[static_cast<std::size_t>(from)];
    count -= count > 0 ? 1 : 0;
    ++started_[static_cast<std::size_t>(to)];
    if (const std::uint64_t cell = start / cell_; wait_no_more(from, cell)) wait(to, cell);
  }
  /// The wait of a page that was used until now, which had started at `start`, starts anew.
  void released(int kind, std::uint64_t start) {
    if (start != now_ && wait_no_more(kind, start / cell_)) wait(kind, waits_.current());
  }
  /// Returns false if the wait was too long to count.
  bool ended(int kind, std::uint64_t wait) {
    const std::uint64_t ticks = wait / tick_;
    if (ticks >= kLongest) return false;
    ++ended_[bucket(ticks)][static_cast<std::size_t>(kind)];
    const std::uint64_t cell = (now_ - std::min(wait, now_)) / cell_;
    learned_.hits += learned_.cache.holds(kind, cell) ? 1 : 0;
    patient_.hits += patient_.cache.holds(kind, cell) ? 1 : 0;
    wait_no_more(kind, cell);
    return true;
  }
  /// The page counts as used this many published pages later; earlier if this is negative.
  std::int64_t credit(int kind) const { return credit(kind, is_patient_); }

  const OpenWaits& waits() const { return waits_; }
  std::uint64_t cell_of(std::uint64_t start) const { return start / cell_; }

 private:
  // In ticks: the size of the pool, the interval after which the credits are computed anew, a cell
  // of the waits that have not ended, and the longest wait that counts.
  static constexpr std::uint64_t kTicks = 128, kInterval = kTicks / 2, kCell = 2;
  static constexpr std::uint64_t kLongest = kGhostsOfPage * kTicks;
  // Two buckets for each doubling: they begin at 0, 1, 2, 3, 4, 6, 8, 12, ... ticks.
  static constexpr std::size_t bucket(std::uint64_t ticks) {
    if (ticks < 2) return ticks;
    const auto log = static_cast<std::size_t>(std::bit_width(ticks)) - 1;
    return 2 * log + (ticks >> (log - 1) & 1);
  }
  static constexpr std::uint64_t edge(std::size_t bucket) {
    return bucket < 2 ? bucket : (2 + bucket % 2) << (bucket / 2 - 1);
  }
  static constexpr std::size_t kBuckets = 22;  // bucket(kLongest)
  static constexpr std::size_t kKinds = OpenWaits::kKinds;

  using Counts = std::array<std::uint64_t, kKinds>;  // [kind]
  /// The waits that have not ended, by the bucket that they have come to.
  using Waiting = std::array<Counts, kBuckets>;
  /// A curve for pages of some kinds. If no wait is longer than the beginning of a bucket,
  /// pages[bucket] wait at a time, with hits[bucket] per published page. Units do not matter.
  struct Curve {
    std::array<std::uint64_t, kBuckets + 1> pages{}, hits{};
  };
  /// For each group of kinds, in 256ths of a tick, the longest wait of its pages.
  struct Limits {
    std::uint64_t hits = 0;
    std::array<std::uint64_t, kKinds> of_group{};
  };
  struct Step;
  struct Trial {
    TrialCache cache{};
    std::uint64_t hits = 0;
  };

  void wait(int kind, std::uint64_t cell) {
    waits_.add(kind, cell);
    learned_.cache.add(kind, cell);
    patient_.cache.add(kind, cell);
  }
  /// Returns false if there is no such wait.
  bool wait_no_more(int kind, std::uint64_t cell) {
    if (!waits_.take(kind, cell)) return false;
    learned_.cache.take(kind, cell);
    patient_.cache.take(kind, cell);
    return true;
  }
  std::int64_t credit(int kind, bool is_patient) const;
  TrialCache::Credits credits_in_cells(bool is_patient) const;

  static std::uint64_t sum(const Counts& counts, int first, int last);
  Counts waiting_in(std::size_t bucket) const;
  Curve curve(const Waiting& waiting, int first, int last) const;
  static Step best_step(const Curve& curve, std::size_t from);
  Limits fill(std::span<const Curve> groups) const;
  void choose();
  void learn();
  void next_cell();
  void compare();
  void forget_half();

  std::uint64_t pages_, tick_, cell_;
  std::uint64_t now_ = 0, next_;
  std::uint64_t counted_ = 0;  // pages published while the counts grew, as they are halved
  std::array<std::int64_t, kKinds> credits_;
  // Counts of waits: those that have not ended; all that started; those that ended, by their
  // length; those too long to count.
  OpenWaits waits_;
  Counts started_{};
  std::array<Counts, kBuckets> ended_{};
  Counts outlasted_{};
  Trial learned_, patient_;
  bool is_patient_ = false;
};

}  // namespace kvmesh
