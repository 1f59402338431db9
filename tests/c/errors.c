/* What is refused. */
#include <math.h>
#include <string.h>

#include "program.h"

static void check_refused_calls_change_nothing(kvmesh_cache_t* cache) {
  kvmesh_sequence_t sequence = 0;
  kvmesh_cache_info_t before = KVMESH_INIT(before), after = KVMESH_INIT(after);
  CHECK_OK(kvmesh_sequence_create(cache, &sequence));
  CHECK_OK(kvmesh_cache_get_info(cache, &before));
  CHECK(kvmesh_sequence_create(cache, NULL) == KVMESH_INVALID_ARGUMENT);
  CHECK(kvmesh_sequence_fork(cache, sequence, NULL) == KVMESH_INVALID_ARGUMENT);
  CHECK_OK(kvmesh_cache_get_info(cache, &after));
  CHECK(after.sequences == before.sequences && after.digest == before.digest);
  CHECK_OK(kvmesh_sequence_erase(cache, sequence));
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

  check_refused_calls_change_nothing(cache);
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
