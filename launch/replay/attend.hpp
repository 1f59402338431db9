// A replay by caches that hold keys and values, with tiers, and compute attention.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

#include "kvmesh/mesh.hpp"
#include "kvmesh/tiers.hpp"
#include "launch/replay/attend_shape.hpp"
#include "launch/replay/replay.hpp"

namespace kvmesh::replay {

struct AttendOptions {
  std::int64_t every = 0;  ///< compute attention of every so many batches; 0: of none
  AttendShape shape{};
  /// On GPUs, ranks beyond their number share them.
  DeviceKind device = DeviceKind::kCpu;
  std::chrono::milliseconds deadline{60'000};  ///< of a wait for another rank
};

struct AttendCounts {
  std::int64_t batches = 0;  ///< in which rows were compared
  std::int64_t rows = 0;
  std::int64_t wrong = 0;  ///< numbers
  double max_error = 0;
  std::string first_wrong{};  ///< what and where; empty if there is none
  ReplayCounts served{};
  TierStatistics tiers{};  ///< of all ranks together
  double seconds = 0;      ///< of rank 0's thread in calls of the cache
};

/// Serves the trace by an AttendingCache on each of `options.ranks` threads. Every token's key and
/// value is written when the replay appends it, and only then: what a request finds in the prefix
/// cache, or in a tier, was written by an earlier one. Rows are compared with float64 over keys and
/// values made anew from the request's tokens, outputs are float32. The ranks' allocators are
/// compared at the end.
/// @throws InvalidArgument for the shape; Unsupported; the errors of KvCache.
AttendCounts attend(const Trace& trace, const ReplayOptions& options, const AttendOptions& how,
                    const std::function<void(std::size_t)>& progress);

}  // namespace kvmesh::replay
