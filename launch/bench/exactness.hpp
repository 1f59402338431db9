// Compares the output of a timed operation with float64.
#pragma once

#include "launch/bench/workload.hpp"

namespace kvmesh::bench {

/// Returns the distance of `out`, attention of the newest `queries` of each sequence over layer 0,
/// from float64: the largest error over the largest number, of four rows: the first and the last
/// query of the longest sequence with the first and the last query head of its last KV head. `q`
/// and `out` [tokens, heads, dim] are contiguous. REQUIRES: one kv rank. Blocking.
double output_error(Workload& workload, const ConstTensorView& q, const ConstTensorView& out,
                    std::int64_t queries);

}  // namespace kvmesh::bench
