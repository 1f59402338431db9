/* Known prefixes, and the tiers below the device: a part of kvmesh.h, whose rules hold here, too;
   ../prefix.hpp, ../kv_cache.hpp and ../tiers.hpp say more. */
#ifndef KVMESH_C_PREFIXES_H
#define KVMESH_C_PREFIXES_H

#include <stddef.h>
#include <stdint.h>

#include "kvmesh/c/mesh.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A cache and a sequence of it: kvmesh.h. */
typedef struct kvmesh_cache kvmesh_cache_t;
typedef uint64_t kvmesh_sequence_t;

/* ---- Known prefixes ---- */

/* The tokens of one request, whose full pages are hashed. */
typedef struct kvmesh_prefix_key kvmesh_prefix_key_t;

/* Properties that distinguish pages with equal tokens. */
typedef struct kvmesh_prefix_item { /* an input of another modality */
  const char* id;
  int64_t first, tokens;
} kvmesh_prefix_item_t;
typedef struct kvmesh_prefix_extras {
  size_t size;
  const char* salt;                        /* isolates tenants; NULL: none */
  const char *adapter_name, *adapter_path; /* NULL: none */
  const kvmesh_prefix_item_t* items;
  size_t item_count;
  const uint8_t* prompt_embeds; /* the SHA-256 of each page's embeddings, 32 bytes each */
  size_t prompt_embeds_count;   /* pages, from the first on */
} kvmesh_prefix_extras_t;

KVMESH_API kvmesh_status_t kvmesh_prefix_key_create(const kvmesh_cache_t* cache,
                                                    const kvmesh_prefix_extras_t* extras,
                                                    kvmesh_prefix_key_t** key);
KVMESH_API void kvmesh_prefix_key_destroy(kvmesh_prefix_key_t* key);
KVMESH_API kvmesh_status_t kvmesh_prefix_key_append(kvmesh_prefix_key_t* key, const int32_t* tokens,
                                                    size_t count);
KVMESH_API kvmesh_status_t kvmesh_prefix_key_truncate(kvmesh_prefix_key_t* key, int64_t length);

/* A run of cached pages, pinned until a sequence is made of it or it is released. */
typedef struct kvmesh_prefix_match {
  kvmesh_sequence_t pin;
  int64_t tokens;
} kvmesh_prefix_match_t;

/* These change metadata only, on every rank alike. With a file tier, kvmesh_prefix_match,
   kvmesh_prefix_match_after, kvmesh_prefix_match_now and kvmesh_sequence_create_of_key are
   collective over all ranks. */
KVMESH_API kvmesh_status_t kvmesh_prefix_match(kvmesh_cache_t* cache,
                                               const kvmesh_prefix_key_t* key,
                                               kvmesh_prefix_match_t* match);
/* The same. If pages come back from tiers on a GPU, the copies run beside the steps, after the work
   on `stream`, which must come after all work that uses the cache's pages: that is the stream of
   kvmesh_plan_replan. Without a stream the call waits for all work of the device. */
KVMESH_API kvmesh_status_t kvmesh_prefix_match_after(kvmesh_cache_t* cache,
                                                     const kvmesh_prefix_key_t* key, void* stream,
                                                     kvmesh_prefix_match_t* match);
/* As kvmesh_prefix_match_after, but waits for no file: it starts to read pages from files, and
   `*loading` is the number of tokens behind the match that are on their way. While it is not 0, a
   later call for the key may find more: see KvCache::match_prefix_now in kvmesh/kv_cache.hpp. */
KVMESH_API kvmesh_status_t kvmesh_prefix_match_now(kvmesh_cache_t* cache,
                                                   const kvmesh_prefix_key_t* key, void* stream,
                                                   kvmesh_prefix_match_t* match, int64_t* loading);
KVMESH_API kvmesh_status_t kvmesh_prefix_release(kvmesh_cache_t* cache,
                                                 const kvmesh_prefix_match_t* match);
/* A sequence that has the cached tokens of a match, which it ends, or of a key. */
KVMESH_API kvmesh_status_t kvmesh_sequence_create_of_match(kvmesh_cache_t* cache,
                                                           const kvmesh_prefix_match_t* match,
                                                           kvmesh_sequence_t* made);
KVMESH_API kvmesh_status_t kvmesh_sequence_create_of_key(kvmesh_cache_t* cache,
                                                         const kvmesh_prefix_key_t* key,
                                                         kvmesh_sequence_t* made);

typedef struct kvmesh_retention { /* tokens [first, first + tokens) */
  int64_t first, tokens;
  int32_t priority;   /* 0 to 100; others have 35 */
  int64_t operations; /* for how many operations of the layer group's allocator; 0: for ever */
} kvmesh_retention_t;
/* Lets later requests find the sequence's full pages. */
KVMESH_API kvmesh_status_t kvmesh_sequence_publish(kvmesh_cache_t* cache,
                                                   kvmesh_sequence_t sequence,
                                                   const kvmesh_prefix_key_t* key,
                                                   const kvmesh_retention_t* retentions,
                                                   size_t retention_count);

/* Of this rank, since the cache was made: see TierStatistics in kvmesh/tiers.hpp. */
typedef struct kvmesh_tier_counts {
  int64_t pages, stores, loads, drops, removed;
} kvmesh_tier_counts_t;
typedef struct kvmesh_tier_statistics {
  size_t size;
  kvmesh_tier_counts_t host, file;
  int64_t pages_back; /* by matches, on all ranks together */
  int64_t corrupt, truncated, foreign, full, denied,
      io; /* files that were no hits, or not stored */
} kvmesh_tier_statistics_t;
KVMESH_API kvmesh_status_t kvmesh_cache_get_tier_statistics(const kvmesh_cache_t* cache,
                                                            kvmesh_tier_statistics_t* statistics);
/* Stores this rank's published pages, and those of its host tier, in files, and blocks until they
   are there. */
KVMESH_API kvmesh_status_t kvmesh_cache_flush_tiers(kvmesh_cache_t* cache);

#ifdef __cplusplus
}
#endif

#endif
