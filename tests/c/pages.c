/* Latent and float8 pages, a way of the combine, and known prefixes. Keys and values are as in
   attention.c: zero, and the token's number. */
#include <math.h>
#include <string.h>

#include "program.h"

enum { kTokens = 10, kDim = 4 };

static kvmesh_cache_t* make_cache(kvmesh_mesh_t* mesh, int page_kind, int dtype) {
  kvmesh_cache_t* cache = NULL;
  kvmesh_cache_options_t options = KVMESH_INIT(options);
  options.q_heads = options.kv_heads = 1;
  options.k_dim = kDim;
  options.v_dim = 2;
  options.page_size = 2;
  options.pages_per_rank = 16;
  options.dtype = dtype;
  options.placement = KVMESH_PLACE_STRIPED;
  options.page_kind = page_kind;
  options.scale_kind = KVMESH_SCALE_PER_TENSOR;
  options.k_scale = options.v_scale = dtype == KVMESH_DTYPE_FLOAT8_E4M3 ? 0.5f : 0;
  options.prefix_cache = 1;
  options.eviction = KVMESH_EVICT_LRU;
  options.home_threshold_tokens = -3;
  CHECK(kvmesh_cache_create(mesh, &options, &cache) == KVMESH_INVALID_ARGUMENT);
  options.home_threshold_tokens = -2; /* measured */
  CHECK_OK(kvmesh_cache_create(mesh, &options, &cache));
  return cache;
}

/* Queries of the newest tokens, of which `appended` are new; each sees the mean of what is there.
 */
static void check_step(kvmesh_cache_t* cache, kvmesh_sequence_t sequence, int appended, int queries,
                       int is_latent) {
  float q[kTokens * kDim] = {0}, k[kTokens * kDim] = {0}, v[kTokens * 2], o[kTokens * 2];
  int64_t q_shape[] = {queries, 1, kDim}, k_shape[] = {appended, 1, kDim};
  int64_t v_shape[] = {appended, 1, 2}, o_shape[] = {queries, 1, 2};
  const kvmesh_tensor_t q_of = floats(q, 3, q_shape), k_of = floats(k, 3, k_shape);
  const kvmesh_tensor_t v_of = floats(v, 3, v_shape), o_of = floats(o, 3, o_shape);
  kvmesh_plan_t* plan = NULL;
  kvmesh_plan_options_t options = KVMESH_INIT(options);
  kvmesh_batch_entry_t entry = {sequence, appended, queries};
  int64_t pages = -1;
  CHECK_OK(kvmesh_cache_pages_needed(cache, &entry, 1, 0, &pages));
  CHECK(pages == (appended + 1) / 2); /* of whole pages of two tokens */
  CHECK(kvmesh_cache_pages_needed(cache, &entry, 1, 1, &pages) == KVMESH_INVALID_ARGUMENT);
  CHECK_OK(kvmesh_cache_order_by_owner(cache, &entry, 1, 0, &pages));
  CHECK(pages == 0); /* the only entry */
  CHECK(kvmesh_cache_order_by_owner(cache, &entry, 1, 0, NULL) == KVMESH_INVALID_ARGUMENT);
  options.way = KVMESH_WAY_HOST;
  options.travels_as = KVMESH_DTYPE_FLOAT32;
  options.limit_shares_prefixes = options.reads_prefixes_alone = 1;
  options.least_saved_tokens = 1;
  options.fixed_split_tokens = 256;
  for (int i = 0; i < 2 * appended; ++i) v[i] = (float)(kTokens - appended + i / 2);
  for (int i = 0; i < appended; ++i) k[i * kDim] = v[2 * i]; /* a latent page's value */
  CHECK_OK(kvmesh_plan_create(cache, &entry, 1, &options, &plan));
  CHECK_OK(kvmesh_plan_run(plan, 0, &q_of, appended ? &k_of : NULL,
                           appended && !is_latent ? &v_of : NULL, NULL, &o_of, NULL, NULL));
  for (int i = 0; i < queries; ++i) {
    CHECK(fabs(o[2 * i] - (kTokens - queries + i) / 2.0) < 1e-5);
  }
  kvmesh_plan_destroy(plan);
}

/* Each head, and each in a group, has scales of its own: a value of 3 and one of 40 with scales
 * that let the second saturate in head 0, and in the group in head 1. */
static void check_head_scales(kvmesh_mesh_t* mesh) {
  enum { kHeads = 2 };
  const float k_scales[kHeads] = {0.5f, 1}, v_scales[kHeads] = {0.0625f, 0.25f};
  const float of_group[kHeads] = {0.25f, 0.0625f};
  const int32_t second = 1;
  float q[kHeads * kDim] = {0}, k[kHeads * kDim] = {0}, v[kHeads * 2] = {3, 40, 3, 40};
  float o[kHeads * 2] = {0};
  int64_t k_shape[] = {1, kHeads, kDim}, v_shape[] = {1, kHeads, 2};
  const kvmesh_tensor_t q_of = floats(q, 3, k_shape), k_of = floats(k, 3, k_shape);
  const kvmesh_tensor_t v_of = floats(v, 3, v_shape), o_of = floats(o, 3, v_shape);
  kvmesh_cache_t* cache = NULL;
  kvmesh_plan_t* plan = NULL;
  kvmesh_layer_group_t group = KVMESH_INIT(group);
  kvmesh_cache_options_t options = KVMESH_INIT(options);
  kvmesh_batch_entry_t entry = {0, 1, 1};
  options.layers = 2;
  options.q_heads = options.kv_heads = kHeads;
  options.k_dim = kDim;
  options.v_dim = 2;
  options.pages_per_rank = 4;
  options.dtype = KVMESH_DTYPE_FLOAT8_E4M3;
  options.scale_kind = KVMESH_SCALE_PER_HEAD;
  options.k_head_scales = k_scales;
  CHECK(kvmesh_cache_create(mesh, &options, &cache) == KVMESH_INVALID_ARGUMENT);
  options.v_head_scales = v_scales;
  group.layers = &second;
  group.layer_count = 1;
  group.has_own_scales = 1;
  group.scale_kind = KVMESH_SCALE_PER_HEAD;
  group.k_head_scales = k_scales;
  group.v_head_scales = of_group;
  options.groups = &group;
  options.group_count = 1;
  CHECK_OK(kvmesh_cache_create(mesh, &options, &cache));
  CHECK_OK(kvmesh_sequence_create(cache, &entry.sequence));
  CHECK_OK(kvmesh_plan_create(cache, &entry, 1, NULL, &plan));
  for (int layer = 0; layer < 2; ++layer) {
    CHECK_OK(kvmesh_plan_run(plan, layer, &q_of, &k_of, &v_of, NULL, &o_of, NULL, NULL));
    for (int head = 0; head < kHeads; ++head) {
      CHECK(fabs(o[2 * head] - 3) < 1e-5);
      CHECK(fabs(o[2 * head + 1] - (head == layer ? 28 : 40)) < 1e-5); /* 448 / 16 */
    }
  }
  kvmesh_plan_destroy(plan);
  kvmesh_cache_destroy(cache);
}

/* Three groups: layer 1 sees two positions, with keys of its own size, layer 2 has a state; and a
 * kind of layers. */
static void check_groups(kvmesh_mesh_t* mesh) {
  enum { kRows = 6 };
  const int32_t third = 2, second = 1, first = 0;
  kvmesh_cache_t* cache = NULL;
  kvmesh_layer_group_t groups[2] = {KVMESH_INIT(groups[0]), KVMESH_INIT(groups[1])};
  void *state = NULL, *fork_state = NULL;
  kvmesh_layer_kind_t kind = KVMESH_INIT(kind);
  kvmesh_cache_options_t options = KVMESH_INIT(options);
  kvmesh_plan_options_t plan_options = KVMESH_INIT(plan_options);
  kvmesh_sequence_t sequence = 0;
  kvmesh_plan_t* plan = NULL;
  kvmesh_mask_t* mask = NULL;
  float q[kRows * kDim] = {0}, k[kRows * kDim] = {0}, v[kRows * 2], o[kRows * 2];
  int64_t k_shape[] = {kRows, 1, 0}, v_shape[] = {kRows, 1, 2};
  const kvmesh_tensor_t v_of = floats(v, 3, v_shape), o_of = floats(o, 3, v_shape);
  groups[0].layers = &second;
  groups[0].layer_count = 1;
  groups[0].k_dim = 2;
  groups[0].v_dim = 2;
  groups[0].window = 2;
  groups[1].layers = &third;
  groups[1].layer_count = 1;
  groups[1].state_bytes = 32;
  options.layers = 3;
  options.q_heads = options.kv_heads = 1;
  options.k_dim = kDim;
  options.v_dim = 2;
  options.page_size = 2;
  options.pages_per_rank = 16;
  options.dtype = KVMESH_DTYPE_FLOAT32;
  options.groups = groups;
  options.group_count = 2;
  CHECK_OK(kvmesh_cache_create(mesh, &options, &cache));
  CHECK_OK(kvmesh_sequence_create(cache, &sequence));
  kind.layers = &first;
  kind.layer_count = 1;
  CHECK_OK(kvmesh_mask_parse("%0 = kv : int32\n%1 = constant 0 : int32\n%2 = <= %0 %1 : bool\n",
                             NULL, 0, &mask));
  kind.mask = mask;
  plan_options.kinds = &kind;
  plan_options.kind_count = 1;
  for (int i = 0; i < kRows; ++i) v[2 * i] = v[2 * i + 1] = (float)i;
  kvmesh_batch_entry_t entry = {sequence, kRows, kRows};
  CHECK_OK(kvmesh_plan_create(cache, &entry, 1, &plan_options, &plan));
  for (int layer = 0; layer < 2; ++layer) {
    k_shape[2] = layer == 0 ? kDim : 2;
    const kvmesh_tensor_t q_of = floats(q, 3, k_shape), k_of = floats(k, 3, k_shape);
    CHECK_OK(kvmesh_plan_run(plan, layer, &q_of, &k_of, &v_of, NULL, &o_of, NULL, NULL));
    for (int i = 0; i < kRows; ++i) {
      const double sees = layer == 0 ? 0 : i == 0 ? 0 : i - 0.5; /* the first; the last two */
      CHECK(fabs(o[2 * i] - sees) < 1e-5);
    }
  }
  CHECK_OK(kvmesh_sequence_truncate(cache, sequence, 5));
  kvmesh_sequence_t fork = 0;
  CHECK_OK(kvmesh_sequence_state(cache, third, sequence, &state));
  if (state != NULL) memset(state, 1, 32);
  CHECK_OK(kvmesh_sequence_fork(cache, sequence, &fork));
  CHECK_OK(kvmesh_sequence_state(cache, third, fork, &fork_state));
  CHECK(fork_state == state); /* until it appends */
  CHECK(kvmesh_sequence_state(cache, first, sequence, &state) == KVMESH_INVALID_ARGUMENT);
  CHECK(kvmesh_sequence_state(cache, third, sequence, NULL) == KVMESH_INVALID_ARGUMENT);
  groups[0].layer_count = 0;
  kvmesh_cache_t* none = NULL;
  CHECK(kvmesh_cache_create(mesh, &options, &none) == KVMESH_INVALID_ARGUMENT);
  kvmesh_plan_destroy(plan);
  kvmesh_mask_destroy(mask);
  kvmesh_cache_destroy(cache);
}

/* Equal tokens with other extras are another prefix. */
static void check_no_match(kvmesh_cache_t* cache, const kvmesh_prefix_extras_t* extras,
                           const int32_t* tokens) {
  kvmesh_prefix_key_t* key = NULL;
  kvmesh_prefix_match_t match = {0, -1};
  CHECK_OK(kvmesh_prefix_key_create(cache, extras, &key));
  CHECK_OK(kvmesh_prefix_key_append(key, tokens, kTokens));
  CHECK_OK(kvmesh_prefix_match(cache, key, &match));
  CHECK(match.tokens == 0);
  CHECK_OK(kvmesh_prefix_release(cache, &match));
  kvmesh_prefix_key_destroy(key);
}

static void check_prefixes(kvmesh_cache_t* cache, kvmesh_sequence_t sequence, int is_latent) {
  int32_t tokens[kTokens] = {5, 6, 7, 8, 9, 10, 11, 12, 13, 14};
  const kvmesh_retention_t retention = {0, 4, 90, 1000};
  kvmesh_prefix_extras_t extras = KVMESH_INIT(extras);
  kvmesh_prefix_key_t *key = NULL, *other = NULL;
  kvmesh_prefix_match_t match = {0, -1};
  kvmesh_sequence_t again = 0;
  int64_t length = 0;
  CHECK_OK(kvmesh_prefix_key_create(cache, NULL, &key));
  CHECK_OK(kvmesh_prefix_key_append(key, tokens, kTokens));
  CHECK_OK(kvmesh_sequence_publish(cache, sequence, key, &retention, 1));
  CHECK_OK(kvmesh_sequence_erase(cache, sequence));
  CHECK_OK(kvmesh_prefix_match(cache, key, &match));
  CHECK(match.tokens == kTokens || match.tokens == kTokens - 2);
  CHECK_OK(kvmesh_prefix_release(cache, &match));

  CHECK_OK(kvmesh_prefix_key_truncate(key, kTokens - 2)); /* what a sequence has is not computed */
  CHECK_OK(kvmesh_prefix_key_append(key, tokens, 2));
  CHECK_OK(kvmesh_sequence_create_of_key(cache, key, &again));
  CHECK_OK(kvmesh_sequence_length(cache, again, &length));
  CHECK(length == kTokens - 2);
  check_step(cache, again, 2, 2, is_latent);
  CHECK_OK(kvmesh_prefix_match(cache, key, &match));
  CHECK_OK(kvmesh_sequence_create_of_match(cache, &match, &again));

  extras.salt = "another tenant";
  check_no_match(cache, &extras, tokens);
  extras.salt = NULL;
  extras.prompt_embeds_count = 1;
  CHECK(kvmesh_prefix_key_create(cache, &extras, &other) == KVMESH_INVALID_ARGUMENT);
  const uint8_t embeds[32] = {1, 2, 3};
  extras.prompt_embeds = embeds;
  check_no_match(cache, &extras, tokens);
  CHECK_OK(kvmesh_cache_check_replicas(cache));
  kvmesh_prefix_key_destroy(key);
}

/* A pool of 6 pages on each rank: what it evicts comes back from the host tier. */
static void check_tiers(kvmesh_mesh_t* mesh) {
  int32_t tokens[kTokens] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  kvmesh_tier_options_t tiers = KVMESH_INIT(tiers);
  kvmesh_cache_options_t options = KVMESH_INIT(options);
  kvmesh_tier_statistics_t statistics = KVMESH_INIT(statistics);
  kvmesh_cache_info_t info = KVMESH_INIT(info);
  kvmesh_prefix_key_t* key = NULL;
  kvmesh_prefix_match_t match = {0, -1};
  kvmesh_sequence_t sequence = 0;
  kvmesh_cache_t* cache = NULL;
  tiers.host_bytes = 1 << 20;
  options.q_heads = options.kv_heads = 1;
  options.k_dim = kDim;
  options.v_dim = 2;
  options.page_size = 2;
  options.pages_per_rank = 6;
  options.dtype = KVMESH_DTYPE_FLOAT32;
  options.prefix_cache = 1;
  options.tiers = &tiers;
  CHECK_OK(kvmesh_cache_create(mesh, &options, &cache));
  CHECK_OK(kvmesh_sequence_create(cache, &sequence));
  check_step(cache, sequence, kTokens, kTokens, 0);
  CHECK_OK(kvmesh_prefix_key_create(cache, NULL, &key));
  CHECK_OK(kvmesh_prefix_key_append(key, tokens, kTokens));
  CHECK_OK(kvmesh_sequence_publish(cache, sequence, key, NULL, 0));
  CHECK_OK(kvmesh_sequence_erase(cache, sequence));
  CHECK_OK(kvmesh_cache_get_info(cache, &info));
  CHECK_OK(kvmesh_sequence_create(cache, &sequence)); /* evicts all */
  CHECK(kvmesh_sequence_reserve_after(NULL, sequence, 1, NULL) == KVMESH_INVALID_ARGUMENT);
  CHECK(kvmesh_sequence_reserve_after(cache, sequence, 2 * info.free_pages + 1, NULL) ==
        KVMESH_OUT_OF_PAGES);
  CHECK_OK(kvmesh_sequence_reserve_after(cache, sequence, 2 * info.free_pages, NULL));
  CHECK_OK(kvmesh_sequence_erase(cache, sequence));
  CHECK(kvmesh_prefix_match_after(cache, NULL, NULL, &match) == KVMESH_INVALID_ARGUMENT);
  CHECK(kvmesh_prefix_match_after(cache, key, NULL, NULL) == KVMESH_INVALID_ARGUMENT);
  int64_t loading = -1;
  CHECK(kvmesh_prefix_match_now(cache, key, NULL, &match, NULL) == KVMESH_INVALID_ARGUMENT);
  CHECK(kvmesh_prefix_match_now(cache, key, NULL, NULL, &loading) == KVMESH_INVALID_ARGUMENT);
  CHECK_OK(kvmesh_prefix_match_now(cache, key, NULL, &match, &loading));
  CHECK(match.tokens == kTokens && loading == 0); /* there is no file */
  CHECK_OK(kvmesh_prefix_release(cache, &match));
  CHECK_OK(kvmesh_prefix_match_after(cache, key, NULL, &match)); /* the stream of later steps */
  CHECK(match.tokens == kTokens);
  CHECK_OK(kvmesh_cache_get_tier_statistics(cache, &statistics));
  CHECK(statistics.pages_back == 5 && statistics.file.stores == 0);
  CHECK_OK(kvmesh_sequence_create_of_match(cache, &match, &sequence));
  check_step(cache, sequence, 0, 2, 0);
  CHECK_OK(kvmesh_cache_flush_tiers(cache));
  kvmesh_prefix_key_destroy(key);
  kvmesh_cache_destroy(cache);
  tiers.host_bytes = -1;
  CHECK(kvmesh_cache_create(mesh, &options, &cache) == KVMESH_INVALID_ARGUMENT);
}

void check_pages(kvmesh_mesh_t* mesh) {
  for (int is_latent = 0; is_latent < 2; ++is_latent) {
    for (int dtype = KVMESH_DTYPE_FLOAT32; dtype <= KVMESH_DTYPE_FLOAT8_E4M3; ++dtype) {
      kvmesh_cache_t* cache = make_cache(mesh, is_latent, dtype);
      kvmesh_sequence_t sequence = 0;
      CHECK_OK(kvmesh_sequence_create(cache, &sequence));
      check_step(cache, sequence, kTokens, kTokens, is_latent);
      check_step(cache, sequence, 0, 3, is_latent);
      check_prefixes(cache, sequence, is_latent);
      kvmesh_cache_destroy(cache);
    }
  }
  check_groups(mesh);
  check_head_scales(mesh);
  check_tiers(mesh);
  kvmesh_cache_t* cache = NULL;
  kvmesh_cache_options_t options = KVMESH_INIT(options);
  options.q_heads = options.kv_heads = options.k_dim = 1;
  options.pages_per_rank = 1;
  options.page_kind = 2;
  CHECK(kvmesh_cache_create(mesh, &options, &cache) == KVMESH_INVALID_ARGUMENT);
}
