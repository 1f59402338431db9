// The host's time to plan a step in place.
#pragma once

#include "launch/bench/measure.hpp"

namespace kvmesh::bench {

/// Gives every sequence of the batch `tokens` more and plans. The device is idle before each plan,
/// and its own work for the plan does not count. Collective.
Row measure_plan(Workload& workload, const Options& options, std::int64_t tokens);
/// Returns how many of each sequence's newest tokens measure_plan takes away and appends again.
std::int64_t tokens_of_plans(std::span<const std::int64_t> lengths, const Options& options,
                             std::int64_t tokens);

}  // namespace kvmesh::bench
