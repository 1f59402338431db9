/* Attention over pages that the engine owns, draft trees and their compaction: the parts of the C
   interface for engines with block tables of their own and for speculation. The rules are those of
   kvmesh.h; ../external_pool.hpp, ../mods.hpp and ../kv_cache.hpp say more. */
#ifndef KVMESH_C_EXTERNAL_H
#define KVMESH_C_EXTERNAL_H

#include "kvmesh/c/kvmesh.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- An engine's pools ---- */

typedef struct kvmesh_external_pool kvmesh_external_pool_t;
typedef struct kvmesh_external_plan kvmesh_external_plan_t;

/* One layer's pages on this rank: k [pages, kv_heads, page_size, k_dim] and v [..., v_dim], any
   strides with a contiguous last dimension, so that any order of memory is a view of it; v NULL:
   latent pages, whose values are the first `latent_v_dim` elements of k's rows. Float8 pages
   (type_code 10, 8 bits) have a scale for all keys and one for all values (0: 1), or scales [pages,
   kv_heads, page_size, 1] float32 of each row; of latent pages those of the keys alone. */
typedef struct kvmesh_pool {
  size_t size;
  const kvmesh_tensor_t* k;
  const kvmesh_tensor_t* v;
  int32_t latent_v_dim;
  float k_scale, v_scale;
  const kvmesh_tensor_t* k_scales;
  const kvmesh_tensor_t* v_scales;
} kvmesh_pool_t;

typedef struct kvmesh_external_options {
  size_t size;
  int32_t q_heads;    /* of this rank; REQUIRED */
  int64_t interleave; /* position p is on kv rank (p / interleave) % ranks; 0: the page size */
} kvmesh_external_options_t;

/* PageTables in ../external_pool.hpp. Arrays are copied by the call. */
typedef struct kvmesh_page_tables {
  size_t size;
  int64_t batch;
  const int32_t* q_indptr; /* [batch + 1] */
  const int32_t* kv_lens;  /* [batch] over all ranks, appended tokens included */
  const int32_t* indptr;   /* [batch + 1]; NULL with row_length */
  const int32_t* indices;  /* [index_count] pages of this rank's pool */
  int64_t index_count;
  int64_t row_length;      /* of a block table [batch, row_length]; 0: indptr */
  const int32_t* logical;  /* [index_count] logical pages; NULL: as `interleave` says */
  const int32_t* appended; /* [batch]; NULL: none */
  const int32_t*
      positions; /* [queries, list_length] what each query sees, -1: none; NULL: no lists */
  int64_t list_length;
  /* Where the arrays are, as in kvmesh_tensor_t; 0: in host memory. 2: each on the mesh's GPU or in
     host memory; read after the work on a stream, which the call waits for and which must not be
     captured. */
  int32_t device_type, device_id;
  void* stream;        /* of kvmesh_external_plan_create alone, if device_type is 2 */
  int64_t query_count; /* queries of the batch; only for `positions` with device_type 2 */
} kvmesh_page_tables_t;

/* Makes a pool for layers like `layer`, of which only the form counts. */
KVMESH_API kvmesh_status_t kvmesh_external_pool_create(kvmesh_mesh_t* mesh,
                                                       const kvmesh_pool_t* layer,
                                                       const kvmesh_external_options_t* options,
                                                       kvmesh_external_pool_t** pool);
KVMESH_API void kvmesh_external_pool_destroy(kvmesh_external_pool_t* pool);

/* Plans one step. Collective at every 64th plan or replan, in debug builds at every one. */
KVMESH_API kvmesh_status_t kvmesh_external_plan_create(kvmesh_external_pool_t* pool,
                                                       const kvmesh_page_tables_t* tables,
                                                       const kvmesh_plan_options_t* options,
                                                       kvmesh_external_plan_t** plan);
KVMESH_API kvmesh_status_t kvmesh_external_plan_replan(kvmesh_external_pool_t* pool,
                                                       kvmesh_external_plan_t* plan,
                                                       const kvmesh_page_tables_t* tables,
                                                       const int64_t* q_positions,
                                                       size_t q_position_count, void* stream);
KVMESH_API void kvmesh_external_plan_destroy(kvmesh_external_plan_t* plan);
KVMESH_API kvmesh_status_t kvmesh_external_plan_get_info(const kvmesh_external_plan_t* plan,
                                                         kvmesh_plan_info_t* info);

/* As kvmesh_plan_run and its parts, over one layer's pages. Without k nothing is appended: the
   engine has written the tokens. run and combine are collective. */
KVMESH_API kvmesh_status_t kvmesh_external_plan_run(
    kvmesh_external_plan_t* plan, const kvmesh_pool_t* layer, const kvmesh_tensor_t* q,
    const kvmesh_tensor_t* k, const kvmesh_tensor_t* v, const kvmesh_tensor_t* sinks,
    const kvmesh_tensor_t* o, const kvmesh_tensor_t* lse, void* stream);
KVMESH_API kvmesh_status_t kvmesh_external_plan_append(kvmesh_external_plan_t* plan,
                                                       const kvmesh_pool_t* layer,
                                                       const kvmesh_tensor_t* k,
                                                       const kvmesh_tensor_t* v, void* stream);
KVMESH_API kvmesh_status_t kvmesh_external_plan_attend(
    kvmesh_external_plan_t* plan, const kvmesh_pool_t* layer, const kvmesh_tensor_t* q,
    const kvmesh_tensor_t* sinks, const kvmesh_tensor_t* partial_o,
    const kvmesh_tensor_t* partial_lse, void* stream);
KVMESH_API kvmesh_status_t kvmesh_external_plan_combine(kvmesh_external_plan_t* plan,
                                                        const kvmesh_tensor_t* partial_o,
                                                        const kvmesh_tensor_t* partial_lse,
                                                        const kvmesh_tensor_t* o,
                                                        const kvmesh_tensor_t* lse, void* stream);
/* As kvmesh_plan_gather_queries. */
KVMESH_API kvmesh_status_t kvmesh_external_plan_gather_queries(kvmesh_external_plan_t* plan,
                                                               const kvmesh_tensor_t* share,
                                                               const kvmesh_tensor_t* q,
                                                               void* stream);

/* ---- Draft trees ---- */

typedef struct kvmesh_draft_trees kvmesh_draft_trees_t;

/* Masks of up to `rows` rows with trees of up to `most_tokens` tokens. */
KVMESH_API kvmesh_status_t kvmesh_draft_trees_create(int32_t rows, int32_t most_tokens,
                                                     kvmesh_draft_trees_t** trees);
KVMESH_API void kvmesh_draft_trees_destroy(kvmesh_draft_trees_t* trees);
/* Row `row` has a tree at the positions [first, first + count), its last ones; parents[i] < i, or
   -1: the token before the tree. count 0: no tree. Only between steps. */
KVMESH_API kvmesh_status_t kvmesh_draft_trees_set(kvmesh_draft_trees_t* trees, int32_t row,
                                                  int64_t first, const int32_t* parents,
                                                  size_t count);
/* A mask for plans, which sees all later trees. */
KVMESH_API kvmesh_status_t kvmesh_draft_trees_mask(const kvmesh_draft_trees_t* trees,
                                                   kvmesh_mask_t** mask);

/* The tokens that a sequence keeps: all before `begin`, and those at `kept`, ascending. */
typedef struct kvmesh_kept_tokens {
  kvmesh_sequence_t sequence;
  int64_t begin;
  const int64_t* kept;
  size_t kept_count;
} kvmesh_kept_tokens_t;
/* Moves the kept tokens to the positions from `begin` on, and truncates. Collective if a token or a
   page moves between ranks. */
KVMESH_API kvmesh_status_t kvmesh_cache_compact(kvmesh_cache_t* cache,
                                                const kvmesh_kept_tokens_t* batch,
                                                size_t batch_count, void* stream);

#ifdef __cplusplus
}
#endif

#endif
