/* Scores as text, with captured numbers. Keys are zero, so a score is what the mod adds, and a row's
   logarithm is that of the number of its keys, plus that. */
#include <math.h>
#include <string.h>

#include "program.h"

enum { kTokens = 6, kHeads = 2, kDim = 4 };

static const char kBias[] =
    "%0 = score : float32\n"
    "%1 = h : int32\n"
    "%2 = load buffer0 %1 : float32\n"
    "%3 = + %0 %2 : float32\n";

static void check_refused(const kvmesh_tensor_t* const* buffers) {
  kvmesh_score_t* score = NULL;
  CHECK(kvmesh_score_parse(kBias, NULL, 0, &score) == KVMESH_INVALID_ARGUMENT);
  CHECK(strstr(kvmesh_last_error(), "line 3") != NULL);
  CHECK(kvmesh_score_parse(NULL, buffers, 1, &score) == KVMESH_INVALID_ARGUMENT);
  CHECK(kvmesh_score_parse(kBias, buffers, 1, NULL) == KVMESH_INVALID_ARGUMENT);
  CHECK(score == NULL);
  CHECK(strcmp(kvmesh_score_text(NULL), "") == 0 && strcmp(kvmesh_mask_text(NULL), "") == 0);
  kvmesh_score_destroy(NULL);
  kvmesh_mask_destroy(NULL);
}

static void run_step(kvmesh_mesh_t* mesh, const kvmesh_score_t* score, const float* bias) {
  float q[kTokens * kHeads * kDim] = {0}, kv[kTokens * kDim] = {0};
  float o[kTokens * kHeads * kDim], lse[kTokens * kHeads];
  int64_t q_shape[] = {kTokens, kHeads, kDim}, kv_shape[] = {kTokens, 1, kDim};
  const kvmesh_tensor_t q_of = floats(q, 3, q_shape), kv_of = floats(kv, 3, kv_shape);
  const kvmesh_tensor_t o_of = floats(o, 3, q_shape), lse_of = floats(lse, 2, q_shape);
  kvmesh_cache_t* cache = NULL;
  kvmesh_plan_t* plan = NULL;
  kvmesh_cache_options_t options = KVMESH_INIT(options);
  kvmesh_plan_options_t plan_options = KVMESH_INIT(plan_options);
  kvmesh_batch_entry_t entry = {0, kTokens, -1};
  options.q_heads = kHeads;
  options.kv_heads = 1;
  options.k_dim = kDim;
  options.page_size = 2;
  options.pages_per_rank = 4;
  options.dtype = KVMESH_DTYPE_FLOAT32;
  options.placement = KVMESH_PLACE_STRIPED;
  plan_options.score = score;
  CHECK_OK(kvmesh_cache_create(mesh, &options, &cache));
  CHECK_OK(kvmesh_sequence_create(cache, &entry.sequence));
  CHECK_OK(kvmesh_plan_create(cache, &entry, 1, &plan_options, &plan));
  CHECK_OK(kvmesh_plan_run(plan, 0, &q_of, &kv_of, &kv_of, NULL, &o_of, &lse_of, NULL));
  for (int row = 0; row < kTokens * kHeads; ++row) {
    CHECK(fabs(lse[row] - (log(row / kHeads + 1) + bias[row % kHeads])) < 1e-5);
  }
  kvmesh_plan_destroy(plan);
  kvmesh_cache_destroy(cache);
}

void check_mods(kvmesh_mesh_t* mesh) {
  const float bias[kHeads] = {0.5f, -2};
  float captured[kHeads];
  int64_t shape[] = {kHeads};
  const kvmesh_tensor_t buffer = floats(captured, 1, shape);
  const kvmesh_tensor_t* const buffers[] = {&buffer};
  kvmesh_score_t *score = NULL, *again = NULL;
  memcpy(captured, bias, sizeof bias);
  check_refused(buffers);
  CHECK_OK(kvmesh_score_parse(kBias, buffers, 1, &score));
  captured[0] = captured[1] = NAN; /* they were copied */
  CHECK(strcmp(kvmesh_score_text(score), kBias) == 0);
  CHECK_OK(kvmesh_score_parse(kvmesh_score_text(score), buffers, 1, &again));
  CHECK(strcmp(kvmesh_score_text(again), kBias) == 0);
  kvmesh_score_destroy(again);
  run_step(mesh, score, bias);
  kvmesh_score_destroy(score);
}
