// Checks the allocator's invariants by recomputing them.
#pragma once

#include <span>

#include "allocator/pages/page_pools.hpp"
#include "allocator/prefix/prefix_cache.hpp"
#include "allocator/sequence_table.hpp"
#include "kvmesh/allocator.hpp"

namespace kvmesh {

/// Moves in progress.
struct MovesUnderWay {
  std::span<const PageCopy> moves{};
  std::span<const PageId> pins{};
  bool has_destinations = true;  ///< false if they were given back
  bool is_beside = false;        ///< other operations go on
};

/// @throws Error that names the first broken invariant:
/// - each rank's free list holds exactly its free pages, each once;
/// - a page is in use by as many sequences as its reference count says, each time at the same
///   logical index; the destination of a move in progress by that, and a pinned page by its pin;
/// - the pages that are marked as moving are the sources of moves beside other operations;
/// - pages past the end of a rank's pool are in use only while they are moved;
/// - a shared page holds content in every sequence that shares it, and these know that they share;
/// - lengths lie within capacities; the counts of pages per rank are right;
/// - every slot of the sequence table is in use, listed as empty, or retired.
void check_integrity(const PagePools& pools, const SequenceTable& sequences, int page_size,
                     const MovesUnderWay& under_way = {});

/// @throws Error that names the first broken invariant of the prefix cache:
/// - the kept pages are those of the index, and each is found by its hash;
/// - a page's parent is in the index, and held if the page is;
/// - the leading pages that a sequence has published are a chain of the index;
/// - the queues of eviction hold as many pages as are cached.
void check_prefixes(const PagePools& pools, const SequenceTable& sequences,
                    const PrefixCache& prefixes);

}  // namespace kvmesh
