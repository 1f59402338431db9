// CheckedCache: a layer's run on the ranks, by the cache's own plan or by page tables.
#include <type_traits>

#include "launch/verify/checked_step.hpp"

namespace kvmesh::verify {

void CheckedCache::run_on_ranks(Step& step, int layer, const LayerInput& given,
                                const TensorView& gathered, const CombineOutput& output) {
  const StepOptions& options = step.options;
  const bool in_parts = options.in_parts && !of(layer).reproducible;
  if (!options.external) {
    return run_plan(step.plan, layer, in_parts, with_gathered(step.plan, layer, given, gathered),
                    output);
  }
  const PlanOptions of_layer = options_of_layer(options.plan, layer, of(layer).window);
  if (options.engine && try_on_engine(step, layer, of_layer, given, gathered, output)) return;
  ExternalPlan plan = external_.plan(layer, step.batch, of_layer, options.lists);
  const KvPool pool = cache_.pool(layer);
  const LayerInput input = with_gathered(plan, pool, given, gathered);
  if (options.lists.empty()) return run_plan(plan, pool, in_parts, input, output);
  step.plan.append(layer, input.k, input.v);
  run_plan(plan, pool, false, {.q = input.q, .sinks = input.sinks}, output);
}

bool CheckedCache::try_on_engine(Step& step, int layer, const PlanOptions& of_layer,
                                 const LayerInput& given, const TensorView& gathered,
                                 const CombineOutput& output) {
  const StepOptions& options = step.options;
  std::vector<EngineSequence> batch;
  for (const BatchEntry& entry : step.batch) {
    batch.push_back({twins_.at(entry.sequence), allocator().length(entry.sequence),
                     entry.append_tokens, queries_of(entry)});
  }
  CheckedExternal::Engine* engine =
      external_.engine_for(layer, *options.engine, batch, of_layer, options.lists);
  if (engine == nullptr) return false;
  step.plan.append(layer, given.k, given.v);
  engine->pages.fill(single_.pool(layer), single_.allocator(single_.group_of(layer)), batch);
  const KvPool pool = engine->pages.on_device();
  PageTables tables = engine->pages.tables();
  if (!options.lists.empty()) {  // the plan of another layer kind appends
    engine->pool.plan(tables, of_layer).append(pool, given.k, given.v);
    tables.appended = {};
    tables.token_lists = options.lists.positions;
    tables.list_length = options.lists.length;
  }
  ExternalPlan plan = engine->pool.plan(tables, of_layer);
  const LayerInput input = with_gathered(plan, pool, given, gathered);
  if (options.lists.empty()) {
    run_plan(plan, pool, options.in_parts, input, output);
  } else {
    run_plan(plan, pool, false, {.q = input.q, .sinks = input.sinks}, output);
  }
  mesh_->wait({}, "run over an engine's pages");
  expect(engine->pages.gaps_untouched(), "append wrote between the rows of an engine's pages");
  return true;
}

template <class Plan, class Layer>
void CheckedCache::run_plan(Plan& plan, const Layer& layer, bool in_parts, const LayerInput& input,
                            const CombineOutput& output) {
  if (!in_parts) return plan.run(layer, input, output);
  const std::int64_t rows = plan.query_tokens(), heads = input.q.size(1);
  HostTensor partial_o(Dtype::kFloat32, rows, heads, output.o.size(2), mesh_->device());
  HostTensor partial_lse(Dtype::kFloat32, rows, heads, 1, mesh_->device());
  const Partial mine{partial_o.on_device(), partial_lse.matrix_on_device()};
  plan.append(layer, input.k, input.v);
  plan.attend_partial(layer, input.q, mine, {}, input.sinks);
  mesh_->wait({}, "attend_partial");
  partial_o.fetch();
  expect(partial_o.gaps_untouched(), "attend_partial wrote between the rows of its output");
  if constexpr (std::is_same_v<Plan, StepPlan>) {
    plan.combine(mine, output, {}, layer);
  } else {
    plan.combine(mine, output);
  }
}

template <class Plan, class Layer>
LayerInput CheckedCache::with_gathered(Plan& plan, const Layer& layer, const LayerInput& input,
                                       const TensorView& gathered) const {
  if (gathered.empty()) return input;
  const IndexRange heads = share_of(input.q.size(1), mesh_->kv_rank().value, mesh_->kv_parallel());
  ConstTensorView share = input.q;
  share.data = static_cast<const std::byte*>(share.data) +
               heads.begin * share.stride(1) * static_cast<std::int64_t>(size_bytes(share.dtype));
  share.shape[1] = heads.size();
  if constexpr (std::is_same_v<Plan, StepPlan>) {
    plan.gather_queries(layer, share, gathered);
  } else {
    plan.gather_queries(share, gathered);
  }
  LayerInput all = input;
  all.q = gathered;
  return all;
}

void CheckedCache::compare_gathered(const Step& step, HostTensor& gathered, const HostTensor& q,
                                    IndexRange heads) {
  gathered.fetch();
  expect(gathered.gaps_untouched(), "gather_queries wrote between the rows of its output");
  for (std::int64_t row = 0; row < step.single.query_tokens(); ++row) {
    for (std::int64_t head = 0; head < heads.size(); ++head) {
      expect(gathered.elements(row, head) == q.elements(row, heads.begin + head),
             "gather_queries: wrong queries");
    }
  }
}

}  // namespace kvmesh::verify
