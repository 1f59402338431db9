/* The C interface of kvmesh: a KV cache that is spread in pages over many ranks, and exact
   attention over it. It is the C++ interface (../kvmesh.hpp) for other languages; the comments
   there say more.

   - Handles are opaque. The caller destroys the handles that it creates; destroying NULL does
     nothing. A mesh may be destroyed before the caches on it.
   - A function that may fail returns a status. If it is not KVMESH_OK, the function leaves its
     results alone, and kvmesh_last_error() returns the reason. No C++ exception leaves a function.
     kvmesh/error.hpp says what an error has changed: nothing, for statuses 2 to 7.
   - An options struct begins with `size`, which the caller sets to the size that it was compiled
     with (KVMESH_INIT), and 0 in any other member means its default. Later versions only add
   members at the end. NULL for the options: all defaults.
   - Functions marked collective are called by all ranks of the mesh's kv axis (a mesh's and a
     cache's by all ranks) in the same order with equal arguments, and wait for the other ranks. All
     waits end at the deadline. One thread at a time uses a mesh and the objects made on it.
   - A stream is a cudaStream_t, and ignored on the CPU. On a GPU work is done when the stream has
     done it: wait with kvmesh_mesh_wait. */
#ifndef KVMESH_C_KVMESH_H
#define KVMESH_C_KVMESH_H

#include <stddef.h>
#include <stdint.h>

#include "kvmesh/c/mesh.h"
#include "kvmesh/c/prefixes.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Cache ---- */

enum {
  KVMESH_DTYPE_DEFAULT = 0, /* bfloat16 */
  KVMESH_DTYPE_FLOAT32 = 1,
  KVMESH_DTYPE_FLOAT16 = 2,
  KVMESH_DTYPE_BFLOAT16 = 3,
  KVMESH_DTYPE_FLOAT8_E4M3 = 4 /* for pages alone */
};
enum { KVMESH_PAGES_KV = 0, KVMESH_PAGES_LATENT = 1 }; /* latent: keys alone (MLA) */
/* The factors of float8 pages: computed for each token and head; k_scale and v_scale; or
   k_head_scales and v_head_scales. */
enum {
  KVMESH_SCALE_PER_TOKEN_AND_HEAD = 0,
  KVMESH_SCALE_PER_TENSOR = 1,
  KVMESH_SCALE_PER_HEAD = 2
};
enum { KVMESH_PREFIX_SHA256_CBOR = 0, KVMESH_PREFIX_XXH3 = 1 };
enum {
  KVMESH_EVICT_HITS = 0,
  KVMESH_EVICT_TWO_QUEUES = 1,
  KVMESH_EVICT_LRU = 2,
  KVMESH_EVICT_S3FIFO = 3,
  KVMESH_EVICT_SEGMENTED = 4
};
enum { KVMESH_PLACE_BALANCED = 0, KVMESH_PLACE_STRIPED = 1, KVMESH_PLACE_PACKED = 2 };

/* Layers that differ from the rest, with pages of their own. 0: the cache's, or none. */
typedef struct kvmesh_layer_group {
  size_t size;
  const int32_t* layers;
  size_t layer_count;
  int32_t q_heads, kv_heads, k_dim, v_dim;
  int32_t dtype;        /* KVMESH_DTYPE_... */
  int32_t has_own_kind; /* 1: page_kind is the group's */
  int32_t page_kind;    /* KVMESH_PAGES_... */
  int64_t window;       /* positions that a query sees; 0: all */
  double page_share;    /* pages per page of the cache's pages_per_rank; 0: 1 */
  int64_t state_bytes;  /* not 0: layers with this many bytes of state per sequence, and no keys */
  /* 1: the scales that follow are the group's, as those of kvmesh_cache_options_t. Scales per head
     are [kv_heads] of the group. */
  int32_t has_own_scales;
  int32_t scale_kind;
  float k_scale, v_scale;
  const float* k_head_scales;
  const float* v_head_scales;
} kvmesh_layer_group_t;

/* Where pages go that are evicted, and come back from: see TierOptions in kvmesh/tiers.hpp. */
typedef struct kvmesh_tier_options {
  size_t size;
  int64_t host_bytes;           /* of each rank's host memory; 0: no host tier */
  const char* directory;        /* NULL: no file tier */
  const char* model;            /* names the folder of the model's files; NULL: "model" */
  int64_t file_bytes;           /* the most that all ranks keep in files; 0: 16 GiB */
  int32_t durable;              /* 1: files are on the disk before a store is completed */
  int32_t direct;               /* 1: around the system's cache */
  int32_t stores_per_operation; /* 0: 1024 */
} kvmesh_tier_options_t;

/* Heads are the whole model's. Exactly one of pages_per_rank, bytes and memory_fraction is set. */
typedef struct kvmesh_cache_options {
  size_t size;
  int32_t layers; /* 0: 1 */
  int32_t q_heads;
  int32_t kv_heads;
  int32_t k_dim;
  int32_t v_dim;     /* 0: k_dim */
  int32_t page_size; /* 0: 16 */
  int32_t dtype;     /* KVMESH_DTYPE_... */
  int32_t placement; /* KVMESH_PLACE_... */
  int64_t pages_per_rank;
  int64_t bytes;
  double memory_fraction;
  int64_t home_threshold_tokens;      /* 0: 2048; -1: no sequence has a home; -2: measured */
  int32_t reproducible;               /* 1: the same bits on any number of ranks */
  int32_t page_kind;                  /* KVMESH_PAGES_... */
  int32_t scale_kind;                 /* KVMESH_SCALE_... */
  float k_scale, v_scale;             /* 0: 1 */
  int32_t prefix_cache;               /* 1: pages of known prefixes are kept (kvmesh/prefix.hpp) */
  int32_t prefix_hash;                /* KVMESH_PREFIX_... */
  int32_t eviction;                   /* KVMESH_EVICT_... */
  const char* prefix_seed;            /* NULL: vLLM's */
  int64_t window;                     /* positions that a query sees; 0: all */
  const kvmesh_layer_group_t* groups; /* further groups; all other layers are group 0 */
  size_t group_count;
  int64_t max_pages_per_rank; /* that kvmesh_cache_resize can give; 0: no more than at first */
  const kvmesh_tier_options_t* tiers; /* NULL: none */
  const float* k_head_scales;         /* [kv_heads], for KVMESH_SCALE_PER_HEAD */
  const float* v_head_scales;         /* the same; NULL for latent pages */
} kvmesh_cache_options_t;

/* Collective over all ranks. */
KVMESH_API kvmesh_status_t kvmesh_cache_create(kvmesh_mesh_t* mesh,
                                               const kvmesh_cache_options_t* options,
                                               kvmesh_cache_t** cache);
KVMESH_API void kvmesh_cache_destroy(kvmesh_cache_t* cache);

/* Pages that move between ranks, and pools of other sizes: see KvCache::rebalance and the functions
 * after it in kvmesh/kv_cache.hpp. `moved` gets the number of pages, unless it is NULL. Collective
 * over all ranks. */
KVMESH_API kvmesh_status_t kvmesh_cache_rebalance(kvmesh_cache_t* cache, int64_t limit,
                                                  int64_t* moved);
/* Moves pages while steps go on; call it between any two of them. At most `limit` pages move
 * at once; `leaving` is a kv rank that is to be drained, or -1. On a GPU the copies run
 * after the work on `stream`, which is that of kvmesh_plan_replan. `moved` gets the number of pages
 * that have moved since the last call, `moving` of those that are being moved; either may be NULL.
 * See KvCache::rebalance_now. Collective over all ranks. */
KVMESH_API kvmesh_status_t kvmesh_cache_rebalance_now(kvmesh_cache_t* cache, int64_t limit,
                                                      int32_t leaving, void* stream, int64_t* moved,
                                                      int64_t* moving);
KVMESH_API kvmesh_status_t kvmesh_cache_resize(kvmesh_cache_t* cache, int32_t kv_rank,
                                               int64_t pages, int64_t* moved);
KVMESH_API kvmesh_status_t kvmesh_cache_drain(kvmesh_cache_t* cache, int32_t kv_rank,
                                              int64_t* moved);
KVMESH_API kvmesh_status_t kvmesh_cache_add_rank(kvmesh_cache_t* cache, int32_t kv_rank);
/* The pages that a kv rank's pools have. */
KVMESH_API kvmesh_status_t kvmesh_cache_pool_pages(const kvmesh_cache_t* cache, int32_t kv_rank,
                                                   int64_t* pages);
/* Writes the address of a sequence's state in a layer of a group with states: `state_bytes` bytes
 * in memory of the mesh's device. It is NULL on the kv ranks that do not hold the state. The state
 * may be written after a plan that appended to the sequence: see KvCache::sequence_state. */
KVMESH_API kvmesh_status_t kvmesh_sequence_state(kvmesh_cache_t* cache, int32_t layer,
                                                 kvmesh_sequence_t sequence, void** state);

/* These change metadata only, on every rank alike: all ranks call them in the same order. Where it
 * evicts pages that tiers store, on a GPU kvmesh_sequence_reserve waits for the device; with
 * kvmesh_sequence_reserve_after they are copied after the work on `stream`, which is that of
 * kvmesh_plan_replan. */
KVMESH_API kvmesh_status_t kvmesh_sequence_create(kvmesh_cache_t* cache, kvmesh_sequence_t* made);
KVMESH_API kvmesh_status_t kvmesh_sequence_reserve(kvmesh_cache_t* cache,
                                                   kvmesh_sequence_t sequence, int64_t tokens);
KVMESH_API kvmesh_status_t kvmesh_sequence_reserve_after(kvmesh_cache_t* cache,
                                                         kvmesh_sequence_t sequence, int64_t tokens,
                                                         void* stream);
KVMESH_API kvmesh_status_t kvmesh_sequence_fork(kvmesh_cache_t* cache, kvmesh_sequence_t sequence,
                                                kvmesh_sequence_t* made);
KVMESH_API kvmesh_status_t kvmesh_sequence_truncate(kvmesh_cache_t* cache,
                                                    kvmesh_sequence_t sequence, int64_t length);
KVMESH_API kvmesh_status_t kvmesh_sequence_erase(kvmesh_cache_t* cache, kvmesh_sequence_t sequence);
KVMESH_API kvmesh_status_t kvmesh_sequence_length(const kvmesh_cache_t* cache,
                                                  kvmesh_sequence_t sequence, int64_t* length);

typedef struct kvmesh_cache_info {
  size_t size;
  int64_t pages_per_rank; /* the number that the ranks agreed on */
  int64_t free_pages;     /* of all ranks */
  int64_t sequences;
  int64_t pool_bytes; /* of this rank */
  uint64_t digest;    /* equal on all ranks */
} kvmesh_cache_info_t;
KVMESH_API kvmesh_status_t kvmesh_cache_get_info(const kvmesh_cache_t* cache,
                                                 kvmesh_cache_info_t* info);
/* Compares the ranks' metadata: KVMESH_DIGEST_MISMATCH if they differ. Collective over all. */
KVMESH_API kvmesh_status_t kvmesh_cache_check_replicas(kvmesh_cache_t* cache);

/* ---- Steps ---- */

typedef struct kvmesh_plan kvmesh_plan_t;

/* One sequence of a step: `append_tokens` new positions, then the newest `query_tokens` positions
   as queries (-1: as many as are appended). */
typedef struct kvmesh_batch_entry {
  kvmesh_sequence_t sequence;
  int64_t append_tokens;
  int64_t query_tokens;
} kvmesh_batch_entry_t;

/* HEADS, TOKENS: shares of consecutive ones in the order of the kv ranks; where they do not divide,
   the first ranks get one more. OWNER: all heads of the tokens whose owner is this rank
   (kvmesh_plan_token_owners); o and lse have all tokens, and what they have in rows of other ranks'
   tokens is unspecified. For plans: a combiner has no owners and refuses it. */
enum {
  KVMESH_SCATTER_NONE = 0,
  KVMESH_SCATTER_HEADS = 1,
  KVMESH_SCATTER_TOKENS = 2,
  KVMESH_SCATTER_OWNER = 3
};
enum {
  KVMESH_COMBINE_AUTO = 0,
  KVMESH_COMBINE_REDUCE_SCATTER = 1,
  KVMESH_COMBINE_ALL_TO_ALL = 2,
  KVMESH_COMBINE_ALL_REDUCE = 3
};

enum {
  KVMESH_WAY_AUTO = 0,
  KVMESH_WAY_HOST = 1,
  KVMESH_WAY_STAGED = 2,
  KVMESH_WAY_NCCL = 3,
  KVMESH_WAY_PEER = 4,
  KVMESH_WAY_HIERARCHICAL = 5
};

/* Layers whose attention differs from that of the step's other layers. */
typedef struct kvmesh_layer_kind {
  size_t size;
  const int32_t* layers;
  size_t layer_count;
  const kvmesh_mask_t* mask;   /* NULL: causal */
  const kvmesh_score_t* score; /* NULL: none */
  float scale;                 /* 0: 1 / sqrt(k_dim) */
} kvmesh_layer_kind_t;

typedef struct kvmesh_plan_options {
  size_t size;
  const kvmesh_mask_t* mask;   /* NULL: causal */
  const kvmesh_score_t* score; /* NULL: none */
  float scale;                 /* 0: 1 / sqrt(k_dim) */
  int32_t scatter;             /* KVMESH_SCATTER_...: the rows that this rank gets */
  int32_t strategy;            /* KVMESH_COMBINE_... */
  const int64_t* q_positions;  /* of all queries of the batch; NULL: the newest positions */
  size_t q_position_count;
  /* StepLimits, for planning in place and captured graphs: the largest batch; 0 sequences: none */
  int64_t limit_sequences;
  int64_t limit_query_tokens; /* per sequence; 0: 1 */
  int64_t limit_pages;        /* 0: pages_per_rank */
  int32_t way;                /* KVMESH_WAY_...: what moves the rows of the combine */
  int32_t travels_as;         /* KVMESH_DTYPE_... of those rows; 0: float32 (CombineOptions) */
  const kvmesh_layer_kind_t* kinds;
  size_t kind_count;
  int32_t reads_prefixes_alone;  /* 1: PlanOptions::shares_prefixes is false */
  int32_t limit_shares_prefixes; /* 1: StepLimits::shares_prefixes is true */
  int64_t least_saved_tokens;    /* by a prefix that is read once; 0: the device's rule */
  int64_t fixed_split_tokens;    /* PlanOptions::fixed_split_tokens; 0: off */
} kvmesh_plan_options_t;

/* Plans one step: appends the batch's tokens to the metadata and prepares the device. A plan is
   valid until one of its sequences changes. Collective if a page is copied to another rank. */
KVMESH_API kvmesh_status_t kvmesh_plan_create(kvmesh_cache_t* cache,
                                              const kvmesh_batch_entry_t* batch, size_t batch_count,
                                              const kvmesh_plan_options_t* options,
                                              kvmesh_plan_t** plan);
/* Plans another batch in place, with the plan's options but for q_positions. */
KVMESH_API kvmesh_status_t kvmesh_plan_replan(kvmesh_cache_t* cache, kvmesh_plan_t* plan,
                                              const kvmesh_batch_entry_t* batch, size_t batch_count,
                                              const int64_t* q_positions, size_t q_position_count,
                                              void* stream);
KVMESH_API void kvmesh_plan_destroy(kvmesh_plan_t* plan);
/* Writes how many pages of a layer group the step would take, copies included. Changes
   nothing: kvmesh_plan_create succeeds if each group has that many free pages. */
KVMESH_API kvmesh_status_t kvmesh_cache_pages_needed(const kvmesh_cache_t* cache,
                                                     const kvmesh_batch_entry_t* batch,
                                                     size_t batch_count, int32_t group,
                                                     int64_t* pages);
/* Writes an order of the batch, `batch_count` indices, in which the sequences whose rows
   KVMESH_SCATTER_OWNER gives to one kv rank follow one another: see KvCache::order_by_owner. */
KVMESH_API kvmesh_status_t kvmesh_cache_order_by_owner(const kvmesh_cache_t* cache,
                                                       const kvmesh_batch_entry_t* batch,
                                                       size_t batch_count, int32_t group,
                                                       int64_t* order);

typedef struct kvmesh_plan_info {
  size_t size;
  int64_t query_tokens, append_tokens; /* tokens of the tensors */
  int64_t token_begin, token_end;      /* the part of them, and of the heads, that this rank gets */
  int64_t head_begin, head_end;        /* of layer 0's group */
  int64_t workspace_bytes;
  uint64_t generation; /* changes when captured graphs become invalid */
} kvmesh_plan_info_t;
KVMESH_API kvmesh_status_t kvmesh_plan_get_info(const kvmesh_plan_t* plan,
                                                kvmesh_plan_info_t* info);

/* Writes the kv rank that owns each of the batch's `count` query tokens in a layer (with limits
   fewer than query_tokens): see KVMESH_SCATTER_OWNER. */
KVMESH_API kvmesh_status_t kvmesh_plan_token_owners(kvmesh_plan_t* plan, int32_t layer,
                                                    int32_t* owners, size_t count);

/* Appends, attends and combines for one layer. q [query_tokens, q_heads, k_dim], k [append_tokens,
   kv_heads, k_dim], v [append_tokens, kv_heads, v_dim] (NULL for latent pages), o [tokens, heads,
   v_dim] with the rows that this rank gets, lse [tokens, heads] float32 or NULL; heads are this
   rank's. k and v may be NULL where nothing is appended, unless the plan has limits. sinks
   [q_heads] float32 or NULL: the layer's attention sinks, which every row counts once (LayerInput).
   Collective. */
KVMESH_API kvmesh_status_t kvmesh_plan_run(kvmesh_plan_t* plan, int32_t layer,
                                           const kvmesh_tensor_t* q, const kvmesh_tensor_t* k,
                                           const kvmesh_tensor_t* v, const kvmesh_tensor_t* sinks,
                                           const kvmesh_tensor_t* o, const kvmesh_tensor_t* lse,
                                           void* stream);

/* The three parts of it; combine for layers of layer 0's group. A partial is o [query_tokens,
   q_heads, v_dim] and lse [query_tokens, q_heads], both float32; the logarithm is natural. */
KVMESH_API kvmesh_status_t kvmesh_plan_append(kvmesh_plan_t* plan, int32_t layer,
                                              const kvmesh_tensor_t* k, const kvmesh_tensor_t* v,
                                              void* stream);
KVMESH_API kvmesh_status_t kvmesh_plan_attend(kvmesh_plan_t* plan, int32_t layer,
                                              const kvmesh_tensor_t* q,
                                              const kvmesh_tensor_t* sinks,
                                              const kvmesh_tensor_t* partial_o,
                                              const kvmesh_tensor_t* partial_lse, void* stream);
KVMESH_API kvmesh_status_t kvmesh_plan_combine(kvmesh_plan_t* plan,
                                               const kvmesh_tensor_t* partial_o,
                                               const kvmesh_tensor_t* partial_lse,
                                               const kvmesh_tensor_t* o, const kvmesh_tensor_t* lse,
                                               void* stream);

/* Gathers the queries of all heads on every kv rank. share [query_tokens, heads, k_dim] has the
   heads that KVMESH_SCATTER_HEADS gives this rank, and may be their place in q; q [query_tokens,
   q_heads, k_dim], of the same dtype, gets those of all (StepPlan::gather_queries). Collective over
   the kv axis. */
KVMESH_API kvmesh_status_t kvmesh_plan_gather_queries(kvmesh_plan_t* plan, int32_t layer,
                                                      const kvmesh_tensor_t* share,
                                                      const kvmesh_tensor_t* q, void* stream);

/* ---- The combine alone ---- */

typedef struct kvmesh_combiner kvmesh_combiner_t;

enum { KVMESH_LSE_NATURAL = 0, KVMESH_LSE_BASE_TWO = 1 };

typedef struct kvmesh_combine_options {
  size_t size;
  int32_t scatter;  /* KVMESH_SCATTER_... */
  int32_t strategy; /* KVMESH_COMBINE_... */
  int32_t lse_base; /* of the partials; base two is made natural in place */
} kvmesh_combine_options_t;

/* Merges the partials of an engine's own kernels over the mesh's kv axis: on the CPU, or on GPUs
   with an NCCL group. Keeps its buffers: one combiner for all layers. */
KVMESH_API kvmesh_status_t kvmesh_combiner_create(kvmesh_mesh_t* mesh,
                                                  kvmesh_combiner_t** combiner);
KVMESH_API void kvmesh_combiner_destroy(kvmesh_combiner_t* combiner);
/* Partials are those of kvmesh_plan_attend; o [tokens, heads, v_dim] has the rows that `scatter`
   gives this rank, lse (natural) is NULL if it is not wanted. Collective. */
KVMESH_API kvmesh_status_t kvmesh_combiner_run(kvmesh_combiner_t* combiner,
                                               const kvmesh_tensor_t* partial_o,
                                               const kvmesh_tensor_t* partial_lse,
                                               const kvmesh_combine_options_t* options,
                                               const kvmesh_tensor_t* o, const kvmesh_tensor_t* lse,
                                               void* stream);

#ifdef __cplusplus
}
#endif

#endif
