/* The combine alone, and what is refused. */
#include <math.h>
#include <string.h>

#include "program.h"

/* Every rank has one key of weight 1 with its rank as the value: the mean, and log2 of the ranks.
 */
void check_combine(kvmesh_mesh_t* mesh) {
  kvmesh_mesh_info_t info = KVMESH_INIT(info);
  kvmesh_combiner_t* combiner = NULL;
  kvmesh_combine_options_t options = KVMESH_INIT(options);
  int64_t shape[] = {1, 1, 2};
  float partial[2], partial_lse = 0, o[2] = {NAN, NAN}, lse = NAN;
  CHECK_OK(kvmesh_mesh_get_info(mesh, &info));
  partial[0] = partial[1] = (float)info.kv_rank;
  const kvmesh_tensor_t part = floats(partial, 3, shape), out = floats(o, 3, shape);
  const kvmesh_tensor_t part_lse = floats(&partial_lse, 2, shape), out_lse = floats(&lse, 2, shape);
  CHECK_OK(kvmesh_combiner_create(mesh, &combiner));
  CHECK_OK(kvmesh_combiner_run(combiner, &part, &part_lse, NULL, &out, &out_lse, NULL));
  CHECK(fabs(o[1] - (info.kv_parallel - 1) / 2.0) < 1e-6);
  CHECK(fabs(lse - log(info.kv_parallel)) < 1e-6);

  partial_lse = 1; /* base two: log 2, naturally */
  options.lse_base = KVMESH_LSE_BASE_TWO;
  CHECK_OK(kvmesh_combiner_run(combiner, &part, &part_lse, &options, &out, &out_lse, NULL));
  CHECK(fabs(lse - log(2.0 * info.kv_parallel)) < 1e-6);
  CHECK_OK(kvmesh_combiner_run(combiner, &part, &part_lse, NULL, &out, NULL, NULL)); /* no LSE */
  kvmesh_combiner_destroy(combiner);
}

static void check_options(kvmesh_mesh_t* mesh) {
  struct {
    kvmesh_cache_options_t known;
    int64_t newer;
  } options = {KVMESH_INIT(options), 0};
  kvmesh_cache_t* cache = NULL;
  options.known.q_heads = options.known.kv_heads = options.known.k_dim = 4;
  options.known.pages_per_rank = 1;
  options.newer = 1; /* a later version's option, which this library does not know */
  CHECK(kvmesh_cache_create(mesh, &options.known, &cache) == KVMESH_INVALID_ARGUMENT);
  options.newer = 0;
  options.known.size = offsetof(kvmesh_cache_options_t, bytes); /* an earlier version's */
  options.known.memory_fraction = NAN;                          /* not read */
  CHECK_OK(kvmesh_cache_create(mesh, &options.known, &cache));

  kvmesh_sequence_t sequence = 0;
  kvmesh_mesh_info_t info = KVMESH_INIT(info);
  CHECK_OK(kvmesh_mesh_get_info(mesh, &info));
  CHECK_OK(kvmesh_sequence_create(cache, &sequence));
  CHECK(kvmesh_sequence_reserve(cache, sequence, 16 * info.ranks + 1) == KVMESH_OUT_OF_PAGES);
  CHECK(strstr(kvmesh_last_error(), "out of pages") != NULL);
  kvmesh_cache_destroy(cache);
}

void check_errors(kvmesh_mesh_t* mesh) {
  kvmesh_cache_t* cache = NULL;
  kvmesh_mask_t* mask = NULL;
  kvmesh_cache_options_t options = KVMESH_INIT(options);
  CHECK(kvmesh_cache_create(NULL, &options, &cache) == KVMESH_INVALID_ARGUMENT);
  CHECK(kvmesh_cache_create(mesh, NULL, &cache) == KVMESH_INVALID_ARGUMENT);
  CHECK(strstr(kvmesh_last_error(), "options is NULL") != NULL);
  CHECK(kvmesh_cache_create(mesh, &options, NULL) == KVMESH_INVALID_ARGUMENT);
  CHECK(cache == NULL);
  options.size = 0;
  CHECK(kvmesh_cache_create(mesh, &options, &cache) == KVMESH_INVALID_ARGUMENT);
  CHECK(kvmesh_mask_parse("%0 = q : int32", NULL, 0, &mask) == KVMESH_INVALID_ARGUMENT);
  CHECK(kvmesh_mask_parse("%0 = q : int32", NULL, 1, &mask) == KVMESH_INVALID_ARGUMENT);
  kvmesh_cache_destroy(NULL);
  kvmesh_mesh_destroy(NULL);
  kvmesh_plan_destroy(NULL);
  check_options(mesh);
}
