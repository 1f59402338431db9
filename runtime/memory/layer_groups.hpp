// The groups of a cache's layers.
#pragma once

#include <vector>

#include "kvmesh/kv_cache.hpp"
#include "runtime/memory/pool_storage.hpp"

namespace kvmesh {

/// Layers of a cache at the most, and so of a sequence's stream: more than any model has.
inline constexpr int kMostLayers = 1 << 20;

/// The layers of each group: first those that no entry of `CacheOptions::groups` names, then those
/// of each entry.
/// @throws InvalidArgument unless each layer is in one group and no group is empty.
std::vector<std::vector<int>> layers_of_groups(const CacheOptions& options);

/// Each group as the options of a cache that has its layers alone. `pages_per_rank`, if it is set,
/// is the group's.
/// @throws InvalidArgument as layers_of_groups, and for a page share that is not positive or
/// states of a wrong size.
std::vector<CacheOptions> options_of_groups(const CacheOptions& options);

/// @throws Unsupported if GPUs cannot have such a cache reproducible.
void check_reproducible_on_gpu(const CacheOptions& options);

/// The pages of each group's pools on a rank with `pages_per_rank` pages; 0 of each if it has none.
std::vector<std::int64_t> pages_of_groups(CacheOptions options, std::int64_t pages_per_rank);

/// This rank's share of a layer of such a cache.
LocalShape local_shape(const Mesh& mesh, const CacheOptions& options);

/// Returns what a page of a group holds. A page of a group of states holds one row.
PageFormat page_format(const LocalShape& shape, const CacheOptions& group);

/// This rank's pools, for `options.pages_per_rank` pages.
/// @throws InvalidArgument as options_of_groups, and if the bytes do not fit in 63 bits.
PoolLayout pool_layout(const Mesh& mesh, const CacheOptions& options);

/// Returns the largest `pages_per_rank` whose pools take at most `bytes` on the mesh's device; 0 if
/// not even one page fits.
std::int64_t pages_within(std::int64_t bytes, const Mesh& mesh, CacheOptions options);

}  // namespace kvmesh
