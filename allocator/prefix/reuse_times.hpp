// How long pages wait for their next use.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace kvmesh {

/// Learns how much longer than others a cache should keep pages that were hit. Its clock is the
/// number of pages published so far.
///
/// Each use of a page starts a wait, which its next use ends, also if the page was evicted
/// meanwhile and a ghost remembers it. Waits are counted by the hits that the page had when they
/// started. The counts tell what a limit on waits would give: the number of pages that wait, which
/// is the room that they take, and the number of hits. credit() is the difference between two
/// limits, one for pages of at least 1 (or 2) hits and one for the others, that together fill the
/// pool and give the most hits.
///
/// All ranks compute the same, by integers that all of them have.
class ReuseTimes {
 public:
  static constexpr int kMostHits = 2;       ///< more hits count as this many
  static constexpr int kGhostsOfPage = 16;  ///< the ghosts that it needs for each page

  /// `pages`: of all ranks. REQUIRES: later sizes are not larger.
  explicit ReuseTimes(std::int64_t pages);
  void resize(std::int64_t pages) { pages_ = static_cast<std::uint64_t>(pages); }

  std::uint64_t now() const { return now_; }
  void published() {
    if (++now_ == next_) learn();
  }
  void started(int hits) { ++started_.front()[static_cast<std::size_t>(hits)]; }
  /// Returns false if the wait was too long to count.
  bool ended(int hits, std::uint64_t wait) {
    const std::uint64_t ticks = wait / tick_;
    if (ticks >= kLongest) return false;
    ++ended_[bucket(ticks)][static_cast<std::size_t>(hits)];
    return true;
  }
  /// The page counts as used this many published pages later.
  std::uint64_t credit(int hits) const { return hits >= divide_ ? credit_ : 0; }

 private:
  // In ticks: the size of the pool, the interval after which the credit is computed anew, and the
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

  using Counts = std::array<std::uint64_t, kMostHits + 1>;  // [hits]
  /// A curve for pages whose hits are in a range. If no wait is longer than the beginning of a
  /// bucket, pages[bucket] wait at a time, with hits[bucket] per published page. Units do not
  /// matter.
  struct Curve {
    std::array<std::uint64_t, kBuckets + 1> pages{}, hits{};
  };
  struct Choice {
    std::uint64_t hits = 0, credit = 0;
  };
  static std::uint64_t sum(const Counts& counts, int first, int last);
  Curve curve(int first, int last) const;
  Choice choose(int divide) const;
  void learn();
  void forget_half();

  std::uint64_t pages_, tick_;
  std::uint64_t now_ = 0, next_;
  std::uint64_t counted_ = 0;  // pages published while the counts grew, as they are halved
  int divide_ = 1;
  std::uint64_t credit_;
  std::array<Counts, kLongest / kInterval + 2> started_{};  // [intervals ago] all until then
  std::array<Counts, kBuckets> ended_{};
};

}  // namespace kvmesh
