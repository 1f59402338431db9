// How long pages wait for their next use.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvmesh {

/// Learns how much longer than others a cache should keep pages of a kind. Its clock is the number
/// of pages published so far.
///
/// Each use of a page starts a wait, which its next use ends, also if the page was evicted
/// meanwhile and a ghost remembers it. The kind of a page is the number of its hits, or
/// kEnd: it has none, and no page has continued it. Waits are counted by the kind that the page had
/// when they started. The counts give, for a limit on the waits of a kind, the number of pages that
/// wait, which is the room that they take, and the number of hits. credit() is the difference
/// between two limits, of those that together fill the pool and give the most hits.
///
/// All ranks compute the same, by integers that all of them have.
class ReuseTimes {
 public:
  static constexpr int kMostHits = 3;  ///< more hits count as this many
  static constexpr int kEnd = 4;       ///< the kind of a page without hits that none has continued
  static constexpr int kGhostsOfPage = 16;  ///< the ghosts that it needs for each page

  /// `pages`: of all ranks. REQUIRES: later sizes are not larger.
  explicit ReuseTimes(std::int64_t pages);
  void resize(std::int64_t pages) { pages_ = static_cast<std::uint64_t>(pages); }

  std::uint64_t now() const { return now_; }
  void published() {
    if (++now_ == next_) learn();
  }
  void started(int kind) {
    ++waiting_.front()[static_cast<std::size_t>(kind)];
    ++started_[static_cast<std::size_t>(kind)];
  }
  /// A wait that has just started is of another kind.
  void changed(int from, int to) {
    take_one(waiting_.front(), from);
    take_one(started_, from);
    started(to);
  }
  /// Returns false if the wait was too long to count.
  bool ended(int kind, std::uint64_t wait) {
    const std::uint64_t ticks = wait / tick_;
    if (ticks >= kLongest) return false;
    ++ended_[bucket(ticks)][static_cast<std::size_t>(kind)];
    const std::uint64_t start = (now_ - std::min(wait, now_)) / (kInterval * tick_);
    take_one(waiting_[now_ / (kInterval * tick_) - start], kind);
    return true;
  }
  /// The page counts as used this many published pages later; earlier if this is negative.
  std::int64_t credit(int kind) const { return credits_[static_cast<std::size_t>(kind)]; }

 private:
  // In ticks: the size of the pool, the interval after which the credits are computed anew, and the
  // longest wait that counts.
  static constexpr std::uint64_t kTicks = 128, kInterval = kTicks / 2;
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
  static constexpr std::size_t kKinds = kEnd + 1;

  using Counts = std::array<std::uint64_t, kKinds>;  // [kind]
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

  static void take_one(Counts& counts, int kind) {
    std::uint64_t& count = counts[static_cast<std::size_t>(kind)];
    count -= count > 0 ? 1 : 0;
  }
  static std::uint64_t sum(const Counts& counts, int first, int last);
  std::array<std::uint64_t, kBuckets> waiting_in(int first, int last) const;
  Curve curve(int first, int last) const;
  static Step best_step(const Curve& curve, std::size_t from);
  Limits fill(std::span<const Curve> groups) const;
  void choose();
  void learn();
  void forget_half();

  std::uint64_t pages_, tick_;
  std::uint64_t now_ = 0, next_;
  std::uint64_t counted_ = 0;  // pages published while the counts grew, as they are halved
  std::array<std::int64_t, kKinds> credits_;
  // Waits: that have not ended, by the intervals since they started; all that started; those that
  // ended, by their length; those that lasted longer than is counted.
  std::array<Counts, kLongest / kInterval + 1> waiting_{};
  Counts started_{};
  std::array<Counts, kBuckets> ended_{};
  Counts outlasted_{};
};

}  // namespace kvmesh
