// Compares the output of a timed operation with float64.
#pragma once

#include <functional>
#include <optional>

#include "launch/bench/workload.hpp"

namespace kvmesh::bench {

/// The positions and sinks that rows see beside, or instead of, all positions before them.
struct Seen {
  /// Whether query number `query` of the newest of a sequence sees a position before it; unset:
  /// yes.
  std::function<bool(std::size_t sequence, std::int64_t query, std::int64_t position)> sees{};
  ConstTensorView sinks{};  ///< [q_heads]; may be empty
  /// The score of a query's position and a key's from the scaled product; unset: the product.
  std::function<double(double score, int head, std::int64_t query, std::int64_t key)> score{};
  /// The pages of layer 0, if they are not read as the cache's own.
  std::optional<ConstKvPool> pool{};
};

/// Returns the distance of `out`, attention of the newest `queries` of each sequence over layer 0,
/// from float64: the largest error over the largest number, of four rows: the first and the last
/// query of the longest sequence with the first and the last query head of its last KV head. `q`
/// and `out` [tokens, heads, dim] are contiguous. REQUIRES: one kv rank. Blocking.
double output_error(Workload& workload, const ConstTensorView& q, const ConstTensorView& out,
                    std::int64_t queries, const Seen& seen = {});

}  // namespace kvmesh::bench
