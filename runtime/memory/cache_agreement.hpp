// What the ranks of a mesh agree on before they make a cache.
#pragma once

#include "kvmesh/kv_cache.hpp"
#include "runtime/memory/pool_storage.hpp"

namespace kvmesh {

struct CacheAgreement {
  CacheOptions options;  ///< what KvCache::options says
  std::uint16_t id_space = 0;
};

/// Compares the ranks' options, of which only the amount of memory may differ: the smallest number
/// of pages that a rank's options come to counts for all. Draws the space of the cache's ids, which
/// no other cache of any of these processes has. Collective over the mesh's world.
/// @throws InvalidArgument, on every rank, if a rank's options are wrong, if two ranks' differ
/// (naming rank and field), or if `bytes` has not room for a page; OutOfMemory, on every rank, if a
/// fraction has not.
CacheAgreement agree_on_cache(Mesh& mesh, const CacheOptions& options);

/// This rank's share of a layer.
LocalShape local_shape(const Mesh& mesh, const CacheOptions& options);

}  // namespace kvmesh
