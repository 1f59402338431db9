// Steps of the C interface.
#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "runtime/c/guard.hpp"
#include "runtime/c/handles.hpp"
#include "runtime/c/plan_options.hpp"
#include "runtime/c/tensors.hpp"

using namespace kvmesh;
using namespace kvmesh::c;

namespace {

std::vector<BatchEntry> batch_of(const kvmesh_batch_entry_t* batch, std::size_t count) {
  require(count == 0 || batch != nullptr, "batch is NULL");
  std::vector<BatchEntry> entries;
  for (std::size_t i = 0; i < count; ++i) {
    entries.push_back(
        {SequenceId(batch[i].sequence), batch[i].append_tokens, batch[i].query_tokens});
  }
  return entries;
}

WayKind way_of(std::int32_t number) {
  static_assert(KVMESH_WAY_HOST + kWayKinds == KVMESH_WAY_HIERARCHICAL + 1,
                "c/kvmesh.h has a constant for each WayKind, in the same order");
  require(number >= KVMESH_WAY_HOST && number - KVMESH_WAY_HOST < kWayKinds, "way {} is not valid",
          number);
  return static_cast<WayKind>(number - KVMESH_WAY_HOST);
}

StepLimits limits_of(const kvmesh_plan_options_t& given) {
  StepLimits limits{.sequences = given.limit_sequences,
                    .pages = given.limit_pages,
                    .shares_prefixes = given.limit_shares_prefixes != 0};
  if (given.limit_query_tokens != 0) limits.query_tokens = given.limit_query_tokens;
  return limits;
}

LayerKind layer_kind(const kvmesh_layer_kind_t& given) {
  LayerKind kind{.layers = layers_of(given.layers, given.layer_count)};
  if (given.mask != nullptr) kind.mask = given.mask->mod;
  if (given.score != nullptr) kind.score = given.score->mod;
  if (given.scale != 0) kind.scale = given.scale;
  return kind;
}

}  // namespace

namespace kvmesh::c {

std::span<const std::int64_t> positions_of(const std::int64_t* positions, std::size_t count) {
  require(count == 0 || positions != nullptr, "q_positions is NULL");
  return {positions, count};
}

PlanOptions plan_options(const kvmesh_plan_options_t* given) {
  const kvmesh_plan_options_t known_options = known(given);
  PlanOptions options;
  if (known_options.mask != nullptr) options.mask = known_options.mask->mod;
  if (known_options.score != nullptr) options.score = known_options.score->mod;
  if (known_options.scale != 0) options.scale = known_options.scale;
  options.scatter = scatter_of(known_options.scatter);
  options.strategy = strategy_of(known_options.strategy);
  if (known_options.way != KVMESH_WAY_AUTO) {
    options.way = way_of(known_options.way);
  }
  if (known_options.travels_as != KVMESH_DTYPE_DEFAULT) {
    options.travels_as = dtype_of(known_options.travels_as);
  }
  options.shares_prefixes = known_options.reads_prefixes_alone == 0;
  if (known_options.least_saved_tokens != 0) {
    options.least_saved_tokens = known_options.least_saved_tokens;
  }
  options.fixed_split_tokens = known_options.fixed_split_tokens;
  const auto positions = positions_of(known_options.q_positions, known_options.q_position_count);
  options.q_positions.assign(positions.begin(), positions.end());
  if (known_options.limit_sequences != 0) options.limits = limits_of(known_options);
  for_each_known(
      known_options.kinds, known_options.kind_count, "kinds",
      [&](const kvmesh_layer_kind_t& kind) { options.kinds.push_back(layer_kind(kind)); });
  return options;
}

}  // namespace kvmesh::c

kvmesh_status_t kvmesh_plan_create(kvmesh_cache_t* cache, const kvmesh_batch_entry_t* batch,
                                   size_t batch_count, const kvmesh_plan_options_t* options,
                                   kvmesh_plan_t** plan) {
  return guarded([&] {
    kvmesh_plan_t*& made = checked(plan, "plan");
    KvCache& of = checked(cache, "cache").cache;
    made = new kvmesh_plan{of.plan(batch_of(batch, batch_count), plan_options(options))};
  });
}

kvmesh_status_t kvmesh_plan_replan(kvmesh_cache_t* cache, kvmesh_plan_t* plan,
                                   const kvmesh_batch_entry_t* batch, size_t batch_count,
                                   const int64_t* q_positions, size_t q_position_count,
                                   void* stream) {
  return guarded([&] {
    checked(cache, "cache")
        .cache.replan(checked(plan, "plan").plan, batch_of(batch, batch_count), Stream{stream},
                      positions_of(q_positions, q_position_count));
  });
}

void kvmesh_plan_destroy(kvmesh_plan_t* plan) { delete plan; }

kvmesh_status_t kvmesh_cache_pages_needed(const kvmesh_cache_t* cache,
                                          const kvmesh_batch_entry_t* batch, size_t batch_count,
                                          int32_t group, int64_t* pages) {
  return guarded([&] {
    std::int64_t& needed = checked(pages, "pages");
    needed = checked(cache, "cache").cache.pages_needed(batch_of(batch, batch_count), group);
  });
}

kvmesh_status_t kvmesh_cache_order_by_owner(const kvmesh_cache_t* cache,
                                            const kvmesh_batch_entry_t* batch, size_t batch_count,
                                            int32_t group, int64_t* order) {
  return guarded([&] {
    require(order != nullptr || batch_count == 0, "order is NULL");
    std::ranges::copy(
        checked(cache, "cache").cache.order_by_owner(batch_of(batch, batch_count), group), order);
  });
}

kvmesh_status_t kvmesh_plan_get_info(const kvmesh_plan_t* plan, kvmesh_plan_info_t* info) {
  return guarded([&] { fill(info, info_of(checked(plan, "plan").plan)); });
}

kvmesh_status_t kvmesh_plan_token_owners(kvmesh_plan_t* plan, int32_t layer, int32_t* owners,
                                         size_t count) {
  return guarded([&] {
    const Participation& ranks = checked(plan, "plan").plan.participation(layer);
    require(static_cast<std::int64_t>(count) == ranks.tokens(), "{} owners of {} query tokens",
            count, ranks.tokens());
    require(owners != nullptr || count == 0, "owners is NULL");
    for (std::size_t t = 0; t < count; ++t) {
      owners[t] = ranks.owner(static_cast<std::int64_t>(t)).value;
    }
  });
}

kvmesh_status_t kvmesh_plan_run(kvmesh_plan_t* plan, int32_t layer, const kvmesh_tensor_t* q,
                                const kvmesh_tensor_t* k, const kvmesh_tensor_t* v,
                                const kvmesh_tensor_t* sinks, const kvmesh_tensor_t* o,
                                const kvmesh_tensor_t* lse, void* stream) {
  return guarded([&] {
    checked(plan, "plan")
        .plan.run(layer,
                  {.q = view(q, "q"),
                   .k = view_or_empty(k, "k"),
                   .v = view_or_empty(v, "v"),
                   .sinks = view_or_empty(sinks, "sinks")},
                  {.o = view(o, "o"), .lse = view_or_empty(lse, "lse")}, Stream{stream});
  });
}

kvmesh_status_t kvmesh_plan_append(kvmesh_plan_t* plan, int32_t layer, const kvmesh_tensor_t* k,
                                   const kvmesh_tensor_t* v, void* stream) {
  return guarded([&] {
    checked(plan, "plan")
        .plan.append(layer, view_or_empty(k, "k"), view_or_empty(v, "v"), Stream{stream});
  });
}

kvmesh_status_t kvmesh_plan_attend(kvmesh_plan_t* plan, int32_t layer, const kvmesh_tensor_t* q,
                                   const kvmesh_tensor_t* sinks, const kvmesh_tensor_t* partial_o,
                                   const kvmesh_tensor_t* partial_lse, void* stream) {
  return guarded([&] {
    checked(plan, "plan")
        .plan.attend_partial(layer, view(q, "q"), partial(partial_o, partial_lse), Stream{stream},
                             view_or_empty(sinks, "sinks"));
  });
}

kvmesh_status_t kvmesh_plan_combine(kvmesh_plan_t* plan, const kvmesh_tensor_t* partial_o,
                                    const kvmesh_tensor_t* partial_lse, const kvmesh_tensor_t* o,
                                    const kvmesh_tensor_t* lse, void* stream) {
  return guarded([&] {
    checked(plan, "plan")
        .plan.combine(partial(partial_o, partial_lse),
                      {.o = view(o, "o"), .lse = view_or_empty(lse, "lse")}, Stream{stream});
  });
}

kvmesh_status_t kvmesh_plan_gather_queries(kvmesh_plan_t* plan, int32_t layer,
                                           const kvmesh_tensor_t* share, const kvmesh_tensor_t* q,
                                           void* stream) {
  return guarded([&] {
    checked(plan, "plan")
        .plan.gather_queries(layer, view(share, "share"), view(q, "q"), Stream{stream});
  });
}
