// The hit rate that no order of eviction exceeds.
#pragma once

#include <cstdint>

#include "launch/replay/replay.hpp"

namespace kvmesh::replay {

struct BestHits {
  std::int64_t hit_tokens = 0;
  std::int64_t prompt_tokens = 0;  ///< of the requests that are served
  double rate() const { return rate_of(hit_tokens, prompt_tokens); }
};

/// Returns the hit rate that a cache of `capacity_tokens` and all tiers would have had, if it knew
/// the future: it evicts the pages whose next use comes last (Belady), which may be those of the
/// request that has just been served; a block's pages count as used together. One request after
/// another. Requests that a replay refuses are left out, as they are of its hit rate. Pages and
/// prefixes as in the real cache: only full pages are kept, and reused only after all pages before
/// them. O(blocks log blocks).
BestHits best_hits(const Trace& trace, const ReplayOptions& options);

}  // namespace kvmesh::replay
