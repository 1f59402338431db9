// The hit rate that no order of eviction exceeds.
#pragma once

#include <cstdint>

#include "launch/replay/trace.hpp"

namespace kvmesh::replay {

/// The tokens of prompts that a cache of `pages` pages would have had, if it knew the future: it
/// evicts the pages whose next use comes last (Belady), which may be those of the request that has
/// just been served; a block's pages count as used together. One request after another; prompts
/// alone; a request that does not fit into all pages is not served. Pages and prefixes as in the
/// real cache: only full pages are kept, and reused only after all pages before them. O(blocks log
/// blocks).
std::int64_t most_hit_tokens(const Trace& trace, std::int64_t pages, int page_size);

}  // namespace kvmesh::replay
