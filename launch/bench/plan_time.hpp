// The host's time to plan a step in place.
#pragma once

#include "launch/bench/measure.hpp"

namespace kvmesh::bench {

/// Every sequence of the batch gets `tokens` more. The device is idle before each plan, and what it
/// has to do for it does not count. Collective.
Row measure_plan(Workload& workload, const Options& options, std::int64_t tokens);

}  // namespace kvmesh::bench
