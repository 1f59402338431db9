/* Pages that the engine owns; draft trees, and what is kept of them. Keys are zero, and values the
   token's number, so that a query sees the mean of the numbers. */
#include <kvmesh/c/external.h>
#include <math.h>

#include "program.h"

enum { kPages = 8, kPageSize = 2, kDim = 4 };

static void check_one(const float* o, double want) { CHECK(fabs(o[0] - want) < 1e-5); }

/* A page is [page_size, heads, dim] of keys, then of values, as views. */
static void check_tables(kvmesh_mesh_t* mesh) {
  float memory[kPages * kPageSize * 2 * kDim] = {0};
  int64_t shape[] = {kPages, 1, kPageSize, kDim};
  int64_t strides[] = {kPageSize * 2 * kDim, kDim, kDim, 1};
  kvmesh_tensor_t k_pages = floats(memory, 4, shape);
  kvmesh_tensor_t v_pages = floats(memory + kPageSize * kDim, 4, shape);
  float q[kDim] = {0}, k[6 * kDim] = {0}, v[6 * kDim], o[kDim], lse[1], part_o[kDim], part_lse[1];
  int64_t q_shape[] = {1, 1, kDim}, k_shape[] = {6, 1, kDim};
  int64_t o_shape[] = {1, 1, kDim}, lse_shape[] = {1, 1};
  const kvmesh_tensor_t q_of = floats(q, 3, q_shape), k_of = floats(k, 3, k_shape);
  const kvmesh_tensor_t v_of = floats(v, 3, k_shape), o_of = floats(o, 3, o_shape);
  const kvmesh_tensor_t lse_of = floats(lse, 2, lse_shape);
  const kvmesh_tensor_t part_o_of = floats(part_o, 3, o_shape);
  const kvmesh_tensor_t part_lse_of = floats(part_lse, 2, lse_shape);
  kvmesh_mesh_info_t mesh_info = KVMESH_INIT(mesh_info);
  CHECK_OK(kvmesh_mesh_get_info(mesh, &mesh_info));
  int64_t share_shape[] = {1, mesh_info.kv_rank == 0, kDim};
  const kvmesh_tensor_t share = floats(q, 3, share_shape); /* the head is the first rank's */
  int32_t q_indptr[] = {0, 1}, kv_lens[] = {6}, block_table[] = {5, 1, 0}, appended[] = {6};
  int32_t positions[] = {4, -1, 0};
  kvmesh_pool_t layer = KVMESH_INIT(layer);
  kvmesh_external_options_t options = KVMESH_INIT(options);
  kvmesh_page_tables_t tables = KVMESH_INIT(tables);
  kvmesh_plan_info_t info = KVMESH_INIT(info);
  kvmesh_external_pool_t* pool = NULL;
  kvmesh_external_plan_t *plan = NULL, *listed = NULL;
  k_pages.strides = strides;
  v_pages.strides = strides;
  for (int i = 0; i < 6 * kDim; ++i) v[i] = (float)(i / kDim);
  layer.k = &k_pages;
  layer.v = &v_pages;
  options.q_heads = 1;
  CHECK_OK(kvmesh_external_pool_create(mesh, &layer, &options, &pool));
  tables.batch = 1;
  tables.q_indptr = q_indptr;
  tables.kv_lens = kv_lens;
  tables.indices = block_table;
  tables.index_count = tables.row_length = 3;
  tables.appended = appended;
  CHECK_OK(kvmesh_external_plan_create(pool, &tables, NULL, &plan));
  CHECK_OK(kvmesh_external_plan_get_info(plan, &info));
  CHECK(info.query_tokens == 1 && info.append_tokens == 6 && info.head_end == 1);
  CHECK_OK(kvmesh_external_plan_run(plan, &layer, &q_of, &k_of, &v_of, NULL, &o_of, &lse_of, NULL));
  check_one(o, 2.5);
  check_one(lse, log(6));
  CHECK_OK(kvmesh_external_plan_gather_queries(plan, &share, &q_of, NULL));
  CHECK(kvmesh_external_plan_gather_queries(plan, &k_of, &q_of, NULL) == KVMESH_INVALID_ARGUMENT);
  CHECK_OK(kvmesh_external_plan_append(plan, &layer, &k_of, &v_of, NULL));
  CHECK_OK(kvmesh_external_plan_attend(plan, &layer, &q_of, NULL, &part_o_of, &part_lse_of, NULL));
  CHECK_OK(kvmesh_external_plan_combine(plan, &part_o_of, &part_lse_of, &o_of, NULL, NULL));
  check_one(o, 2.5);

  tables.appended = NULL;
  kv_lens[0] = 3;
  CHECK_OK(kvmesh_external_plan_replan(pool, plan, &tables, NULL, 0, NULL));
  CHECK_OK(kvmesh_external_plan_run(plan, &layer, &q_of, NULL, NULL, NULL, &o_of, NULL, NULL));
  check_one(o, 1);
  kv_lens[0] = 6;
  tables.positions = positions;
  tables.list_length = 3;
  CHECK_OK(kvmesh_external_plan_create(pool, &tables, NULL, &listed));
  CHECK_OK(kvmesh_external_plan_run(listed, &layer, &q_of, NULL, NULL, NULL, &o_of, NULL, NULL));
  check_one(o, 2);

  tables.device_type = 1;
  CHECK_OK(kvmesh_external_plan_replan(pool, listed, &tables, NULL, 0, NULL));
  for (tables.device_type = 2; tables.device_type < 4; ++tables.device_type) { /* 3: none */
    CHECK(kvmesh_external_plan_replan(pool, listed, &tables, NULL, 0, NULL) ==
          KVMESH_INVALID_ARGUMENT);
  }
  tables.device_type = 0;
  block_table[1] = kPages;
  block_table[0] = -1;
  CHECK(kvmesh_external_plan_replan(pool, listed, &tables, NULL, 0, NULL) ==
        KVMESH_INVALID_ARGUMENT);
  tables.q_indptr = NULL;
  CHECK(kvmesh_external_plan_create(pool, &tables, NULL, &plan) == KVMESH_INVALID_ARGUMENT);
  layer.v = NULL;
  CHECK(kvmesh_external_plan_run(plan, &layer, &q_of, NULL, NULL, NULL, &o_of, NULL, NULL) ==
        KVMESH_INVALID_ARGUMENT);
  kvmesh_external_plan_destroy(listed);
  kvmesh_external_pool_destroy(pool); /* before its plan */
  kvmesh_external_plan_destroy(plan);
}

/* Three tokens, then the drafts 3, 4 (from the third token each) and 5 (from 4). */
static void check_drafts(kvmesh_mesh_t* mesh) {
  const int32_t parents[] = {-1, -1, 1};
  const int64_t path[] = {4, 5};
  float q[3 * kDim] = {0}, k[6 * kDim] = {0}, v[6 * 2], o[3 * 2];
  int64_t q_shape[] = {3, 1, kDim}, k_shape[] = {6, 1, kDim}, v_shape[] = {6, 1, 2};
  int64_t one_shape[] = {1, 1, kDim}, o_shape[] = {3, 1, 2}, one_o_shape[] = {1, 1, 2};
  const kvmesh_tensor_t q_of = floats(q, 3, q_shape), k_of = floats(k, 3, k_shape);
  const kvmesh_tensor_t v_of = floats(v, 3, v_shape), o_of = floats(o, 3, o_shape);
  const kvmesh_tensor_t one_q = floats(q, 3, one_shape), one_o = floats(o, 3, one_o_shape);
  kvmesh_cache_t* cache = NULL;
  kvmesh_plan_t* plan = NULL;
  kvmesh_mask_t* mask = NULL;
  kvmesh_draft_trees_t* trees = NULL;
  kvmesh_batch_entry_t entry = {0, 6, 3};
  kvmesh_kept_tokens_t kept = {0, 3, path, 2};
  kvmesh_cache_options_t options = KVMESH_INIT(options);
  kvmesh_plan_options_t plan_options = KVMESH_INIT(plan_options);
  for (int i = 0; i < 12; ++i) v[i] = (float)(i / 2);
  options.q_heads = options.kv_heads = 1;
  options.k_dim = kDim;
  options.v_dim = 2;
  options.page_size = 1;
  options.pages_per_rank = 16;
  options.dtype = KVMESH_DTYPE_FLOAT32;
  options.placement = KVMESH_PLACE_STRIPED;
  CHECK_OK(kvmesh_cache_create(mesh, &options, &cache));
  CHECK_OK(kvmesh_sequence_create(cache, &entry.sequence));
  CHECK_OK(kvmesh_draft_trees_create(1, 8, &trees));
  CHECK_OK(kvmesh_draft_trees_set(trees, 0, 3, parents, 3));
  CHECK(kvmesh_draft_trees_set(trees, 1, 3, parents, 3) == KVMESH_INVALID_ARGUMENT);
  CHECK_OK(kvmesh_draft_trees_mask(trees, &mask));
  plan_options.mask = mask;
  CHECK_OK(kvmesh_plan_create(cache, &entry, 1, &plan_options, &plan));
  CHECK_OK(kvmesh_plan_run(plan, 0, &q_of, &k_of, &v_of, NULL, &o_of, NULL, NULL));
  check_one(o, (0 + 1 + 2 + 3) / 4.0);
  check_one(o + 2, (0 + 1 + 2 + 4) / 4.0);
  check_one(o + 4, (0 + 1 + 2 + 4 + 5) / 5.0);

  kept.sequence = entry.sequence;
  CHECK_OK(kvmesh_cache_compact(cache, &kept, 1, NULL));
  CHECK(kvmesh_cache_compact(cache, &kept, 1, NULL) == KVMESH_INVALID_ARGUMENT);
  CHECK_OK(kvmesh_draft_trees_set(trees, 0, 0, NULL, 0));
  entry.append_tokens = 0;
  entry.query_tokens = 1;
  CHECK_OK(kvmesh_plan_replan(cache, plan, &entry, 1, NULL, 0, NULL));
  CHECK_OK(kvmesh_plan_run(plan, 0, &one_q, NULL, NULL, NULL, &one_o, NULL, NULL));
  check_one(o, (0 + 1 + 2 + 4 + 5) / 5.0);
  kvmesh_plan_destroy(plan);
  kvmesh_mask_destroy(mask);
  kvmesh_draft_trees_destroy(trees);
  kvmesh_cache_destroy(cache);
}

void check_external(kvmesh_mesh_t* mesh) {
  check_tables(mesh);
  check_drafts(mesh);
}
