/* All keys are zero, so every visible key has the same weight, and token i holds the value i: a
   window of n keys gives row i the mean of the last n values, and the logarithm of their number. */
#include <math.h>
#include <string.h>

#include "program.h"

enum { kTokens = 10, kHeads = 2, kDim = 4, kRows = kTokens * kHeads };

static const char kWindow[] =
    "%0 = kv : int32\n"
    "%1 = q : int32\n"
    "%2 = <= %0 %1 : bool\n"
    "%3 = - %1 %0 : int32\n"
    "%4 = constant 4 : int32\n"
    "%5 = < %3 %4 : bool\n"
    "%6 = && %2 %5 : bool\n";

/* A sink of log n is as n more keys with the value 0. */
static const double kSinkTerms[kHeads] = {1, 3};

typedef struct {
  float q[kRows * kDim], k[kTokens * kDim], v[kTokens * kDim];
  float o[kRows * kDim], lse[kRows];
} numbers_t;

static void check_numbers(const numbers_t* n, int window, int with_sinks) {
  for (int row = 0; row < kRows; ++row) {
    const int token = row / kHeads;
    const int keys = token + 1 < window ? token + 1 : window;
    const double terms = keys + (with_sinks ? kSinkTerms[row % kHeads] : 0);
    CHECK(fabs(n->lse[row] - log(terms)) < 1e-5);
    for (int d = 0; d < kDim; ++d) {
      CHECK(fabs(n->o[row * kDim + d] - (token - (keys - 1) / 2.0) * keys / terms) < 1e-5);
    }
  }
}

static void poison(numbers_t* n) {
  for (int i = 0; i < kRows * kDim; ++i) n->o[i] = NAN;
  for (int i = 0; i < kRows; ++i) n->lse[i] = NAN;
}

static void run_step(kvmesh_plan_t* plan, numbers_t* n, int in_parts, int with_sinks) {
  int64_t q_shape[] = {kTokens, kHeads, kDim}, kv_shape[] = {kTokens, 1, kDim};
  int64_t lse_shape[] = {kTokens, kHeads};
  const kvmesh_tensor_t q = floats(n->q, 3, q_shape), o = floats(n->o, 3, q_shape);
  const kvmesh_tensor_t k = floats(n->k, 3, kv_shape), v = floats(n->v, 3, kv_shape);
  const kvmesh_tensor_t lse = floats(n->lse, 2, lse_shape);
  float partial_o[kRows * kDim], partial_lse[kRows];
  const kvmesh_tensor_t part = floats(partial_o, 3, q_shape);
  const kvmesh_tensor_t part_lse = floats(partial_lse, 2, lse_shape);
  int64_t sinks_shape[] = {kHeads};
  float sink_scores[kHeads];
  for (int h = 0; h < kHeads; ++h) sink_scores[h] = (float)log(kSinkTerms[h]);
  const kvmesh_tensor_t all_sinks = floats(sink_scores, 1, sinks_shape);
  const kvmesh_tensor_t* sinks = with_sinks ? &all_sinks : NULL;
  kvmesh_tensor_t nowhere = lse;
  nowhere.data = NULL;
  CHECK(kvmesh_plan_run(plan, 0, &q, &k, &v, sinks, &o, &nowhere, NULL) == KVMESH_INVALID_ARGUMENT);
  CHECK(strstr(kvmesh_last_error(), "lse: ") != NULL);
  poison(n);
  if (!in_parts) {
    CHECK_OK(kvmesh_plan_run(plan, 0, &q, &k, &v, sinks, &o, &lse, NULL));
    return;
  }
  CHECK_OK(kvmesh_plan_append(plan, 0, &k, &v, NULL));
  CHECK_OK(kvmesh_plan_attend(plan, 0, &q, sinks, &part, &part_lse, NULL));
  CHECK_OK(kvmesh_plan_combine(plan, &part, &part_lse, &o, &lse, NULL));
}

static void check_sequences(kvmesh_cache_t* cache, kvmesh_sequence_t sequence) {
  kvmesh_sequence_t fork = 0;
  int64_t length = 0;
  CHECK_OK(kvmesh_sequence_fork(cache, sequence, &fork));
  CHECK_OK(kvmesh_sequence_truncate(cache, fork, 3));
  CHECK_OK(kvmesh_sequence_reserve(cache, fork, 6));
  CHECK_OK(kvmesh_sequence_length(cache, fork, &length));
  CHECK(length == 3);
  CHECK_OK(kvmesh_sequence_length(cache, sequence, &length));
  CHECK(length == kTokens);
  CHECK_OK(kvmesh_sequence_erase(cache, fork));
  CHECK(kvmesh_sequence_erase(cache, fork) == KVMESH_UNKNOWN_SEQUENCE);
  CHECK_OK(kvmesh_cache_check_replicas(cache));
}

/* Pages move to a rank that got none, and back when it is drained; one rank has nowhere to go. */
static void check_movement(kvmesh_mesh_t* mesh, kvmesh_cache_t* cache) {
  int64_t moved = -1, pages = -1;
  kvmesh_mesh_info_t info = KVMESH_INIT(info);
  CHECK_OK(kvmesh_mesh_get_info(mesh, &info));
  int64_t moving = 0;
  CHECK_OK(kvmesh_cache_rebalance_now(cache, 1, -1, NULL, &moved, &moving));
  CHECK(moved == 0);
  CHECK(moving == 0 || moving == 1);
  while (moving > 0) CHECK_OK(kvmesh_cache_rebalance_now(cache, 0, -1, NULL, NULL, &moving));
  CHECK_OK(kvmesh_cache_rebalance_now(cache, 0, -1, NULL, NULL, NULL));
  CHECK(kvmesh_cache_rebalance_now(cache, -1, -1, NULL, NULL, NULL) == KVMESH_INVALID_ARGUMENT);
  CHECK(kvmesh_cache_rebalance_now(cache, 0, info.ranks, NULL, NULL, NULL) ==
        KVMESH_INVALID_ARGUMENT);
  CHECK_OK(kvmesh_cache_rebalance(cache, 100, &moved));
  CHECK(moved >= 0);
  moved = 0;
  if (info.ranks == 1) {
    CHECK(kvmesh_cache_drain(cache, 0, &moved) == KVMESH_OUT_OF_PAGES);
    CHECK(moved == 0);
  } else {
    CHECK_OK(kvmesh_cache_drain(cache, 1, &moved));
    CHECK(moved > 0);
    CHECK_OK(kvmesh_cache_pool_pages(cache, 1, &pages));
    CHECK(pages == 0);
    CHECK_OK(kvmesh_cache_add_rank(cache, 1));
    CHECK_OK(kvmesh_cache_rebalance(cache, 100, NULL));
  }
  CHECK_OK(kvmesh_cache_resize(cache, 0, 17, &moved));
  CHECK_OK(kvmesh_cache_pool_pages(cache, 0, &pages));
  CHECK(pages == 17);
  CHECK(kvmesh_cache_resize(cache, 0, 18, NULL) == KVMESH_INVALID_ARGUMENT);
  CHECK(kvmesh_cache_pool_pages(cache, info.ranks, &pages) == KVMESH_INVALID_ARGUMENT);
}

static kvmesh_cache_t* make_cache(kvmesh_mesh_t* mesh, int reproducible) {
  kvmesh_cache_t* cache = NULL;
  kvmesh_cache_options_t options = KVMESH_INIT(options);
  options.q_heads = kHeads;
  options.kv_heads = 1;
  options.k_dim = kDim;
  options.page_size = 2;
  options.pages_per_rank = 16;
  options.max_pages_per_rank = 17;
  options.dtype = KVMESH_DTYPE_FLOAT32;
  options.placement = KVMESH_PLACE_STRIPED;
  options.reproducible = reproducible;
  CHECK_OK(kvmesh_cache_create(mesh, &options, &cache));
  return cache;
}

/* It refuses the parts of a step, which have rounded: so the option has arrived. */
static void check_reproducible(kvmesh_mesh_t* mesh, numbers_t* n) {
  kvmesh_cache_t* cache = make_cache(mesh, 1);
  kvmesh_batch_entry_t prompt = {0, kTokens, -1};
  kvmesh_plan_t* plan = NULL;
  int64_t shape[] = {kTokens, kHeads, kDim};
  const kvmesh_tensor_t q = floats(n->q, 3, shape), o = floats(n->o, 3, shape);
  const kvmesh_tensor_t lse = floats(n->lse, 2, shape);
  CHECK_OK(kvmesh_sequence_create(cache, &prompt.sequence));
  CHECK_OK(kvmesh_plan_create(cache, &prompt, 1, NULL, &plan));
  CHECK(kvmesh_plan_attend(plan, 0, &q, NULL, &o, &lse, NULL) != KVMESH_OK);
  run_step(plan, n, 0, 1);
  check_numbers(n, kTokens, 1);
  kvmesh_plan_destroy(plan);
  kvmesh_cache_destroy(cache);
}

static void check_owners(kvmesh_cache_t* cache, uint64_t sequence) {
  kvmesh_plan_options_t options = KVMESH_INIT(options);
  options.scatter = KVMESH_SCATTER_OWNER;
  kvmesh_batch_entry_t queries = {sequence, 0, 3};
  kvmesh_plan_t* plan = NULL;
  int32_t owners[3] = {-1, -1, -1};
  CHECK_OK(kvmesh_plan_create(cache, &queries, 1, &options, &plan));
  CHECK_OK(kvmesh_plan_token_owners(plan, 0, owners, 3));
  CHECK(owners[0] >= 0 && owners[1] == owners[0] && owners[2] == owners[0]);
  CHECK(kvmesh_plan_token_owners(plan, 0, owners, 2) != KVMESH_OK);
  kvmesh_plan_destroy(plan);
}

/* Every rank passes its heads of the queries, and gets all of them. */
static void check_gather(kvmesh_mesh_t* mesh, kvmesh_plan_t* plan) {
  kvmesh_mesh_info_t info = KVMESH_INIT(info);
  CHECK_OK(kvmesh_mesh_get_info(mesh, &info));
  const share_t heads = share_of(kHeads, &info);
  const int count = heads.end - heads.begin;
  int64_t shape[] = {kTokens, kHeads, kDim}, share_shape[] = {kTokens, count, kDim};
  int64_t other_shape[] = {kTokens, count, kDim - 1};
  float share[kRows * kDim] = {0}, gathered[kRows * kDim];
  int used = 0;
  for (int i = 0; i < kRows * kDim; ++i) {
    const int head = i / kDim % kHeads;
    if (head >= heads.begin && head < heads.end) share[used++] = (float)i;
  }
  const kvmesh_tensor_t mine = floats(share, 3, share_shape), all = floats(gathered, 3, shape);
  const kvmesh_tensor_t other = floats(share, 3, other_shape);
  CHECK_OK(kvmesh_plan_gather_queries(plan, 0, &mine, &all, NULL));
  for (int i = 0; i < kRows * kDim; ++i) CHECK(gathered[i] == (float)i);
  CHECK(kvmesh_plan_gather_queries(plan, 0, &other, &all, NULL) == KVMESH_INVALID_ARGUMENT);
}

void check_attention(kvmesh_mesh_t* mesh) {
  static _Thread_local numbers_t n;
  memset(&n, 0, sizeof n);
  for (int i = 0; i < kTokens * kDim; ++i) n.v[i] = (float)(i / kDim);
  kvmesh_cache_t* cache = make_cache(mesh, 0);
  kvmesh_mask_t* mask = NULL;
  CHECK_OK(kvmesh_mask_parse(kWindow, NULL, 0, &mask));
  CHECK(strcmp(kvmesh_mask_text(mask), kWindow) == 0);

  kvmesh_batch_entry_t prompt = {0, kTokens, -1};
  kvmesh_plan_t* plan = NULL;
  CHECK_OK(kvmesh_sequence_create(cache, &prompt.sequence));
  CHECK_OK(kvmesh_plan_create(cache, &prompt, 1, NULL, &plan)); /* causal: a window of all */
  run_step(plan, &n, 0, 0);
  check_numbers(&n, kTokens, 0);
  check_gather(mesh, plan);
  kvmesh_plan_destroy(plan);

  kvmesh_plan_options_t windowed = KVMESH_INIT(windowed);
  windowed.mask = mask;
  kvmesh_batch_entry_t second = {0, kTokens, -1};
  CHECK_OK(kvmesh_sequence_create(cache, &second.sequence));
  CHECK_OK(kvmesh_plan_create(cache, &second, 1, &windowed, &plan));
  kvmesh_mask_destroy(mask); /* the plan has its own */
  run_step(plan, &n, 1, 1);
  check_numbers(&n, 4, 1);
  kvmesh_plan_info_t info = KVMESH_INIT(info);
  CHECK_OK(kvmesh_plan_get_info(plan, &info));
  CHECK(info.query_tokens == kTokens && info.token_end == kTokens && info.head_end == kHeads);

  check_owners(cache, prompt.sequence);

  check_sequences(cache, second.sequence);
  check_movement(mesh, cache);
  CHECK_OK(kvmesh_sequence_erase(cache, second.sequence));
  CHECK_OK(kvmesh_sequence_create(cache, &second.sequence));
  CHECK_OK(kvmesh_plan_replan(cache, plan, &second, 1, NULL, 0, NULL));
  run_step(plan, &n, 0, 1);
  check_numbers(&n, 4, 1);
  kvmesh_plan_destroy(plan);
  kvmesh_cache_destroy(cache);
  check_reproducible(mesh, &n);
}
