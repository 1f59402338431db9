/* The combine alone. */
#include <math.h>
#include <string.h>

#include "program.h"

enum { kTokens = 5, kHeads = 3, kDim = 2, kRows = kTokens * kHeads };

/* Every rank has one key of weight 1 with its rank as the value: the mean, and log2 of the ranks.
 */
static void check_bases(kvmesh_mesh_t* mesh) {
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

/* Rank r has r + 1 keys of weight 1 in each row, with the row's number and r as their value, so a
   merged row is its number and the mean of r over all keys. */
static void check_scatter(kvmesh_combiner_t* combiner, const kvmesh_mesh_info_t* info,
                          const kvmesh_combine_options_t* options) {
  float partial[kRows * kDim], partial_lse[kRows], o[kRows * kDim], lse[kRows];
  const share_t all_tokens = {0, kTokens}, all_heads = {0, kHeads};
  const share_t tokens =
      options->scatter == KVMESH_SCATTER_TOKENS ? share_of(kTokens, info) : all_tokens;
  const share_t heads = options->scatter == KVMESH_SCATTER_HEADS ? share_of(kHeads, info) : all_heads;
  int64_t shape[] = {kTokens, kHeads, kDim};
  int64_t o_shape[] = {tokens.end - tokens.begin, heads.end - heads.begin, kDim};
  const kvmesh_tensor_t part = floats(partial, 3, shape), part_lse = floats(partial_lse, 2, shape);
  const kvmesh_tensor_t out = floats(o, 3, o_shape), out_lse = floats(lse, 2, o_shape);
  double keys = 0, values = 0;
  for (int rank = 0; rank < info->kv_parallel; ++rank) {
    keys += rank + 1;
    values += rank * (rank + 1);
  }
  for (int row = 0; row < kRows; ++row) {
    partial_lse[row] = (float)log(info->kv_rank + 1);
    partial[row * kDim] = (float)row;
    partial[row * kDim + 1] = (float)info->kv_rank;
    o[row * kDim] = o[row * kDim + 1] = lse[row] = NAN;
  }
  CHECK_OK(kvmesh_combiner_run(combiner, &part, &part_lse, options, &out, &out_lse, NULL));
  int at = 0;
  for (int token = tokens.begin; token < tokens.end; ++token) {
    for (int head = heads.begin; head < heads.end; ++head, ++at) {
      CHECK(fabs(o[at * kDim] - (token * kHeads + head)) < 1e-5);
      CHECK(fabs(o[at * kDim + 1] - values / keys) < 1e-5);
      CHECK(fabs(lse[at] - log(keys)) < 1e-5);
    }
  }
  for (; at < kRows; ++at) CHECK(isnan(o[at * kDim]) && isnan(lse[at])); /* the caller's */
}

static void check_scatters(kvmesh_mesh_t* mesh) {
  kvmesh_mesh_info_t info = KVMESH_INIT(info);
  kvmesh_combiner_t* combiner = NULL;
  kvmesh_combine_options_t options = KVMESH_INIT(options);
  const int32_t scatters[] = {KVMESH_SCATTER_NONE, KVMESH_SCATTER_HEADS, KVMESH_SCATTER_TOKENS};
  const int32_t strategies[] = {KVMESH_COMBINE_AUTO, KVMESH_COMBINE_REDUCE_SCATTER,
                                KVMESH_COMBINE_ALL_TO_ALL};
  CHECK_OK(kvmesh_mesh_get_info(mesh, &info));
  CHECK_OK(kvmesh_combiner_create(mesh, &combiner));
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) {
      options.scatter = scatters[i];
      options.strategy = strategies[j];
      check_scatter(combiner, &info, &options);
    }
  }
  kvmesh_combiner_destroy(combiner);
}

static void check_refused(kvmesh_mesh_t* mesh) {
  float partial[2] = {0}, partial_lse = 0;
  int64_t shape[] = {1, 1, 2};
  const kvmesh_tensor_t part = floats(partial, 3, shape), lse = floats(&partial_lse, 2, shape);
  kvmesh_combiner_t* combiner = NULL;
  CHECK_OK(kvmesh_combiner_create(mesh, &combiner));
  kvmesh_combine_options_t wrong[] = {KVMESH_INIT(wrong[0]), KVMESH_INIT(wrong[0]),
                                      KVMESH_INIT(wrong[0]), KVMESH_INIT(wrong[0]),
                                      KVMESH_INIT(wrong[0])};
  wrong[0].scatter = KVMESH_SCATTER_OWNER; /* a combiner has no owners */
  wrong[1].scatter = KVMESH_SCATTER_OWNER + 1;
  wrong[2].strategy = KVMESH_COMBINE_ALL_REDUCE + 1;
  wrong[3].strategy = KVMESH_COMBINE_ALL_REDUCE; /* of GPUs */
  wrong[4].lse_base = KVMESH_LSE_BASE_TWO + 1;
  for (int i = 0; i < 5; ++i) {
    CHECK(kvmesh_combiner_run(combiner, &part, &lse, &wrong[i], &part, NULL, NULL) ==
          KVMESH_INVALID_ARGUMENT);
  }
  CHECK(kvmesh_combiner_create(NULL, &combiner) == KVMESH_INVALID_ARGUMENT);
  kvmesh_combiner_destroy(combiner);
}

void check_combine(kvmesh_mesh_t* mesh) {
  check_bases(mesh);
  check_scatters(mesh);
  check_refused(mesh);
}
