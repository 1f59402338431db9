// Pages that move between ranks while a case runs, drawn from its seed.
#pragma once

#include <cstdint>

#include "launch/verify/checked_cache.hpp"
#include "launch/verify/random.hpp"
#include "launch/verify/random_config.hpp"

namespace kvmesh::verify {

/// Pages that have moved.
struct MovedPages {
  std::int64_t all = 0;
  std::int64_t with_leaving = 0;  ///< found by calls with a rank that is leaving
};

/// Calls rebalance_now of a cache of several ranks, with random limits and, at times, a rank that
/// is leaving. All ranks make the same calls.
class RandomMoves {
 public:
  /// REQUIRES: the cache and the random numbers outlive it.
  RandomMoves(CheckedCache& cache, Moves moves, Random& random)
      : cache_(cache), moves_(moves), random_(random) {}

  /// To be called between two steps. Collective.
  void between_steps();
  /// Completes what is under way. Collective.
  void end();

  const MovedPages& moved() const { return moved_; }

 private:
  void draw_leaving();
  /// Returns whether pages are moving.
  bool call(std::int64_t limit);

  CheckedCache& cache_;
  Moves moves_;
  Random& random_;
  PageRank leaving_{-1};
  MovedPages moved_;
};

}  // namespace kvmesh::verify
