// Times of the first step of forks.
#pragma once

#include "launch/bench/measure.hpp"

namespace kvmesh::bench {

/// Measures KvCache::fork of each sequence and the plan that appends `tokens` tokens to each fork,
/// which copies last pages that are not full, and states. With `options.shape.state_bytes` every
/// second layer has a state. The time is of all layers together, in a cache of its own, by the
/// host's clock until the device has done it. Collective over the mesh.
Row measure_forks(const WorkloadShape& shape, Mesh& mesh, Machine& machine, const Options& options,
                  std::int64_t tokens);

}  // namespace kvmesh::bench
