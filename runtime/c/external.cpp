// An engine's pools in the C interface.
#include <span>

#include "runtime/c/guard.hpp"
#include "runtime/c/handles.hpp"
#include "runtime/c/plan_options.hpp"
#include "runtime/c/tensors.hpp"

using namespace kvmesh;
using namespace kvmesh::c;

namespace {

KvPool pool_of(const kvmesh_pool_t* given) {
  static_cast<void>(checked(given, "layer"));
  const kvmesh_pool_t layer = known(given);
  KvPool pool{.k = view(layer.k, "k"), .v = view_or_empty(layer.v, "v")};
  const auto scale = [](float number) { return number == 0 ? 1.0f : number; };
  pool.k_scale = {scale(layer.k_scale), view_or_empty(layer.k_scales, "k_scales")};
  pool.v_scale = {scale(layer.v_scale), view_or_empty(layer.v_scales, "v_scales")};
  if (layer.v != nullptr) return pool;
  require(layer.latent_v_dim > 0, "v is NULL, and latent_v_dim {}", layer.latent_v_dim);
  require(layer.v_scales == nullptr && layer.v_scale == 0,
          "the values of latent pages have the scales of the keys");
  pool.v = pool.k;
  pool.v.shape[3] = layer.latent_v_dim;
  pool.v_scale = pool.k_scale;
  return pool;
}

template <class T>
std::span<const T> numbers(const T* first, std::int64_t count, const char* what) {
  require(count >= 0 && (first != nullptr || count == 0), "{} is NULL, or has {} numbers", what,
          count);
  return {first, static_cast<std::size_t>(count)};
}

PageTables tables_of(const kvmesh_page_tables_t* given) {
  static_cast<void>(checked(given, "tables"));
  const kvmesh_page_tables_t t = known(given);
  require(t.batch >= 0 && t.batch < INT32_MAX, "page tables of {} sequences", t.batch);
  PageTables tables{.q_indptr = numbers(t.q_indptr, t.batch + 1, "q_indptr"),
                    .kv_lens = numbers(t.kv_lens, t.batch, "kv_lens"),
                    .indices = numbers(t.indices, t.index_count, "indices"),
                    .row_length = t.row_length};
  if (t.row_length == 0) tables.indptr = numbers(t.indptr, t.batch + 1, "indptr");
  if (t.logical != nullptr) tables.logical = numbers(t.logical, t.index_count, "logical");
  if (t.appended != nullptr) tables.appended = numbers(t.appended, t.batch, "appended");
  if (t.device_type != 0) tables.device = device_of(t.device_type, t.device_id, "page tables");
  if (t.positions != nullptr) {
    const bool on_host = tables.device.kind == DeviceKind::kCpu;
    const std::int64_t queries = on_host ? tables.q_indptr.back() : t.query_count;
    require(queries >= 0 && queries <= INT32_MAX && t.list_length > 0 && t.list_length <= INT32_MAX,
            "token lists of {} positions for {} queries", t.list_length, queries);
    tables.token_lists = numbers(t.positions, queries * t.list_length, "positions");
    tables.list_length = t.list_length;
  }
  return tables;
}

}  // namespace

kvmesh_status_t kvmesh_external_pool_create(kvmesh_mesh_t* mesh, const kvmesh_pool_t* layer,
                                            const kvmesh_external_options_t* options,
                                            kvmesh_external_pool_t** pool) {
  return guarded([&] {
    kvmesh_external_pool_t*& made = checked(pool, "pool");
    const kvmesh_external_options_t given = known(options);
    made = new kvmesh_external_pool{
        ExternalPool(checked(mesh, "mesh").mesh, pool_of(layer),
                     {.q_heads = given.q_heads, .interleave = given.interleave})};
  });
}

void kvmesh_external_pool_destroy(kvmesh_external_pool_t* pool) { delete pool; }

kvmesh_status_t kvmesh_external_plan_create(kvmesh_external_pool_t* pool,
                                            const kvmesh_page_tables_t* tables,
                                            const kvmesh_plan_options_t* options,
                                            kvmesh_external_plan_t** plan) {
  return guarded([&] {
    kvmesh_external_plan_t*& made = checked(plan, "plan");
    ExternalPool& of = checked(pool, "pool").pool;
    const PageTables given = tables_of(tables);
    made = new kvmesh_external_plan{
        of.plan(given, plan_options(options), Stream{known(tables).stream})};
  });
}

kvmesh_status_t kvmesh_external_plan_replan(kvmesh_external_pool_t* pool,
                                            kvmesh_external_plan_t* plan,
                                            const kvmesh_page_tables_t* tables,
                                            const int64_t* q_positions, size_t q_position_count,
                                            void* stream) {
  return guarded([&] {
    checked(pool, "pool")
        .pool.replan(checked(plan, "plan").plan, tables_of(tables), Stream{stream},
                     positions_of(q_positions, q_position_count));
  });
}

void kvmesh_external_plan_destroy(kvmesh_external_plan_t* plan) { delete plan; }

kvmesh_status_t kvmesh_external_plan_get_info(const kvmesh_external_plan_t* plan,
                                              kvmesh_plan_info_t* info) {
  return guarded([&] { fill(info, info_of(checked(plan, "plan").plan)); });
}

kvmesh_status_t kvmesh_external_plan_run(kvmesh_external_plan_t* plan, const kvmesh_pool_t* layer,
                                         const kvmesh_tensor_t* q, const kvmesh_tensor_t* k,
                                         const kvmesh_tensor_t* v, const kvmesh_tensor_t* sinks,
                                         const kvmesh_tensor_t* o, const kvmesh_tensor_t* lse,
                                         void* stream) {
  return guarded([&] {
    checked(plan, "plan")
        .plan.run(pool_of(layer),
                  {.q = view(q, "q"),
                   .k = view_or_empty(k, "k"),
                   .v = view_or_empty(v, "v"),
                   .sinks = view_or_empty(sinks, "sinks")},
                  {.o = view(o, "o"), .lse = view_or_empty(lse, "lse")}, Stream{stream});
  });
}

kvmesh_status_t kvmesh_external_plan_append(kvmesh_external_plan_t* plan,
                                            const kvmesh_pool_t* layer, const kvmesh_tensor_t* k,
                                            const kvmesh_tensor_t* v, void* stream) {
  return guarded([&] {
    checked(plan, "plan")
        .plan.append(pool_of(layer), view(k, "k"), view_or_empty(v, "v"), Stream{stream});
  });
}

kvmesh_status_t kvmesh_external_plan_attend(kvmesh_external_plan_t* plan,
                                            const kvmesh_pool_t* layer, const kvmesh_tensor_t* q,
                                            const kvmesh_tensor_t* sinks,
                                            const kvmesh_tensor_t* partial_o,
                                            const kvmesh_tensor_t* partial_lse, void* stream) {
  return guarded([&] {
    checked(plan, "plan")
        .plan.attend_partial(pool_of(layer), view(q, "q"), partial(partial_o, partial_lse),
                             Stream{stream}, view_or_empty(sinks, "sinks"));
  });
}

kvmesh_status_t kvmesh_external_plan_combine(kvmesh_external_plan_t* plan,
                                             const kvmesh_tensor_t* partial_o,
                                             const kvmesh_tensor_t* partial_lse,
                                             const kvmesh_tensor_t* o, const kvmesh_tensor_t* lse,
                                             void* stream) {
  return guarded([&] {
    checked(plan, "plan")
        .plan.combine(partial(partial_o, partial_lse),
                      {.o = view(o, "o"), .lse = view_or_empty(lse, "lse")}, Stream{stream});
  });
}

kvmesh_status_t kvmesh_external_plan_gather_queries(kvmesh_external_plan_t* plan,
                                                    const kvmesh_tensor_t* share,
                                                    const kvmesh_tensor_t* q, void* stream) {
  return guarded([&] {
    checked(plan, "plan").plan.gather_queries(view(share, "share"), view(q, "q"), Stream{stream});
  });
}
