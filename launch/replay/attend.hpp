// A replay by caches that hold keys and values and compute attention.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "launch/replay/replay.hpp"

namespace kvmesh::replay {

struct AttendCounts {
  std::int64_t batches = 0;  ///< in which rows were compared
  std::int64_t rows = 0;
  std::int64_t wrong = 0;  ///< numbers
  double max_error = 0;
  std::string first_wrong;  ///< what and where; empty if there is none
  std::int64_t hit_tokens = 0;
};

/// Serves the trace by a KvCache on each of `options.ranks` threads, on the CPU, of one layer, 2
/// query heads and a kv head of 16 elements in float32. Every token's key and value is written when
/// the replay appends it, and only then: what a request finds in the prefix cache was written by an
/// earlier one. Of every `every`th batch attention is computed, and a row of each of its sequences
/// is compared with float64 over keys and values made anew from the request's tokens. The ranks'
/// allocators are compared at the end.
/// REQUIRES: every >= 1.
/// @throws the errors of KvCache.
AttendCounts attend(const Trace& trace, const ReplayOptions& options, std::int64_t every,
                    const std::function<void(std::size_t)>& progress);

}  // namespace kvmesh::replay
