// The pages that a sequence's records lie on.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "core/page_moves.hpp"
#include "runtime/cache/cache_group.hpp"
#include "runtime/cache/staging.hpp"
#include "runtime/streams/record_rows.hpp"

namespace kvmesh {

/// The parts of a cache that a stream is made from, or goes to.
struct CacheParts {
  Mesh& mesh;
  std::deque<CacheGroup>& groups;
  const PoolStorage& pools;
  Staging& staging;
};

/// Returns the runs of the sequence's tokens from `first` on, in their order.
/// @throws InvalidArgument if the sequence has no page for a token any more.
std::vector<RecordRun> runs_of(const CacheGroup& group, SequenceId sequence, std::int64_t first,
                               std::int64_t tokens);
/// Returns the moves of the runs on a rank's pages, to packed rows or from them.
std::vector<PageMove> moves_on(PageRank rank, std::span<const RecordRun> runs);

}  // namespace kvmesh
