// The options that the ranks of a mesh agree on before they make a cache.
#pragma once

#include "kvmesh/kv_cache.hpp"
#include "runtime/memory/layer_groups.hpp"

namespace kvmesh {

struct CacheAgreement {
  CacheOptions options;  ///< as KvCache::options returns them
  std::uint16_t id_space = 0;
};

/// Compares the ranks' options, of which only the amount of memory may differ. Every rank then
/// takes the smallest number of pages that a rank's options come to. Draws the id space of the
/// cache's sequences, which no other cache of any of these processes has.
/// @throws InvalidArgument, on every rank, if a rank's options are wrong, if two ranks' options
/// differ (naming rank and field), or if `bytes` is too small for one page; OutOfMemory, on every
/// rank, if `memory_fraction` comes to less than one page.
/// Collective over the mesh's world.
CacheAgreement agree_on_cache(Mesh& mesh, const CacheOptions& options);

}  // namespace kvmesh
