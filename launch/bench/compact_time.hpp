// Times of KvCache::compact: a cache keeps some of the drafts that a step has verified.
#pragma once

#include "launch/bench/measure.hpp"

namespace kvmesh::bench {

/// Measures KvCache::compact, all sequences and layers together, by the host's clock until the
/// device has done it. Each sequence keeps a path of its newest `drafts` tokens, which lie as
/// `options.drafts` says. Leaves all sequences with their whole lengths.
/// REQUIRES: each sequence has a page more than the drafts. Collective over the mesh.
Row measure_compact(Workload& workload, Machine& machine, const Options& options,
                    std::int64_t drafts);

}  // namespace kvmesh::bench
