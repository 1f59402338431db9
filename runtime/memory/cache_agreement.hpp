// The options that the ranks of a mesh agree on before they make a cache.
#pragma once

#include "kvmesh/kv_cache.hpp"
#include "runtime/memory/layer_groups.hpp"

namespace kvmesh {

/// How a page rank's pools can get more pages than they began with.
enum class Growth : std::uint8_t {
  kNone,     ///< they may not
  kSystem,   ///< the system gives memory at the first write
  kPieces,   ///< a GPU's memory is mapped in pieces
  kRefused,  ///< they may, but their GPU has no memory in pieces
};

/// The pages of a page rank's pools, in the units of CacheOptions::pages_per_rank.
struct PoolSizes {
  std::int64_t now = 0;
  std::int64_t last = 0;  ///< before the rank was drained
  std::int64_t most = 0;  ///< for which its memory has room
  Growth growth = Growth::kNone;
};

struct CacheAgreement {
  CacheOptions options;  ///< as KvCache::options returns them, but for home_threshold_tokens
  std::vector<PoolSizes> pools{};  ///< [page rank]
  std::uint16_t id_space = 0;
};

/// Compares the ranks' options, of which only the amount of memory may differ. A kv rank has the
/// smallest number of pages that the options of its processes come to. Draws the id space of the
/// cache's sequences, which no other cache of any of these processes has.
/// @throws InvalidArgument, on every rank, if a rank's options are wrong, if two ranks' options
/// differ (naming rank and field), or if `bytes` is too small for one page; OutOfMemory, on every
/// rank, if `memory_fraction` comes to less than one page.
/// Collective over the mesh's world.
CacheAgreement agree_on_cache(Mesh& mesh, const CacheOptions& options);

}  // namespace kvmesh
