// A replay by caches that hold keys and values, with tiers, and compute attention.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "kvmesh/tiers.hpp"
#include "launch/replay/replay.hpp"

namespace kvmesh::replay {

struct AttendCounts {
  std::int64_t batches = 0;  ///< in which rows were compared
  std::int64_t rows = 0;
  std::int64_t wrong = 0;  ///< numbers
  double max_error = 0;
  std::string first_wrong;  ///< what and where; empty if there is none
  ReplayCounts served;
  TierStatistics tiers{};  ///< of all ranks together
  double seconds = 0;      ///< of rank 0's thread in calls of the cache
};

/// Serves the trace by a KvCache on each of `options.ranks` threads, on the CPU, of one layer, 2
/// query heads and a kv head of 16 elements in float32. Every token's key and value is written when
/// the replay appends it, and only then: what a request finds in the prefix cache, or in a tier,
/// was written by an earlier one. Of every `every`th batch attention is computed, and a row of each
/// of its sequences is compared with float64 over keys and values made anew from the request's
/// tokens; of no batch if `every` is 0. The ranks' allocators are compared at the end.
/// @throws the errors of KvCache.
AttendCounts attend(const Trace& trace, const ReplayOptions& options, std::int64_t every,
                    const std::function<void(std::size_t)>& progress);

}  // namespace kvmesh::replay
