// CheckedCache: a step, run on the cache, on the single rank and in float64.
#include "launch/verify/checked_step.hpp"

#include <algorithm>
#include <limits>
#include <type_traits>

namespace kvmesh::verify {
namespace {

// Rows [begin, begin + count).
template <class View>
View some_rows(View view, std::int64_t begin, std::int64_t count) {
  const std::int64_t offset =
      begin * view.stride(0) * static_cast<std::int64_t>(size_bytes(view.dtype));
  using Bytes = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(view.data)>>,
                                   const std::byte*, std::byte*>;
  view.data = static_cast<Bytes>(view.data) + offset;
  view.shape[0] = count;
  return view;
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Selects some heads of sinks [1, 1, all heads].
ConstTensorView some_heads(const TensorView& sinks, IndexRange heads) {
  return {static_cast<const float*>(sinks.data) + heads.begin,
          Dtype::kFloat32,
          {heads.size()},
          sinks.device};
}

HostTensor rounded_rows(const HostTensor& from, std::int64_t rows, Dtype dtype) {
  HostTensor to(dtype, rows, from.heads(), from.dim());
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t head = 0; head < from.heads(); ++head) {
      for (std::int64_t d = 0; d < from.dim(); ++d) to.set(row, head, d, from.get(row, head, d));
    }
  }
  return to;
}

// The mods of `of` for the sequence in row `row` of a batch, alone: they read that row's number.
template <class Mods>
void read_row(Mods& of, std::int32_t row) {
  if (!of.mask.is_identity()) {
    of.mask = MaskMod(
        [mask = of.mask, row](auto, auto h, auto q, auto kv) { return mask(Expr(row), h, q, kv); });
  }
  if (!of.score.is_identity()) {
    of.score = ScoreMod([mod = of.score, row](auto score, auto, auto h, auto q, auto kv) {
      return mod(score, Expr(row), h, q, kv);
    });
  }
}

PlanOptions alone_in_batch(const PlanOptions& options, std::int32_t row,
                           std::span<const std::int64_t> positions) {
  PlanOptions alone = options;
  read_row(alone, row);
  for (LayerKind& kind : alone.kinds) read_row(kind, row);
  alone.q_positions.assign(positions.begin(), positions.end());
  return alone;
}

}  // namespace

HostTensor CheckedCache::random_tensor(Dtype dtype, std::int64_t rows, std::int64_t filled,
                                       std::int64_t heads, std::int64_t dim) {
  HostTensor tensor(dtype, rows, heads, dim, mesh_->device());
  for (std::int64_t row = 0; row < filled; ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      for (std::int64_t d = 0; d < dim; ++d) tensor.set(row, head, d, random_.real());
    }
  }
  return tensor;
}

IndexRange CheckedCache::local(int heads) const {
  return share_of(heads, mesh_->head_rank(), mesh_->head_parallel());
}

bool CheckedCache::step(std::initializer_list<BatchEntry> batch, const StepOptions& options) {
  return step(std::span(batch.begin(), batch.size()), options);
}

std::optional<StepPlan> CheckedCache::try_plan(std::span<const BatchEntry> batch,
                                               const StepOptions& options) {
  PlanOptions first = options.plan;
  if (options.replanned) first.q_positions.clear();
  std::optional<StepPlan> plan;
  if (options.replanned) plan.emplace(cache_.plan({}, first));
  const std::uint64_t before = cache_.digest();
  if (!options.replanned) {
    if (Result<StepPlan> made = cache_.try_plan(batch, first)) plan = std::move(*made);
  } else if (!cache_.try_replan(*plan, batch, {}, options.plan.q_positions)) {
    plan.reset();
  }
  expect(plan || is_moving_ || cache_.digest() == before,  // moves may have been given up
         "plan: refused the batch and changed the allocator");
  return plan;
}

void CheckedCache::add_queries(Step& step) const {
  const std::vector<std::int64_t>& given = step.options.plan.q_positions;
  for (std::size_t s = 0; s < step.batch.size(); ++s) {
    const BatchEntry& entry = step.batch[s];
    const std::int64_t queries = queries_of(entry);
    const std::int64_t first = cache_.length(entry.sequence) - queries;
    for (std::int64_t i = 0; i < queries; ++i)
      step.queries.push_back({s, given.empty() ? first + i : given[step.queries.size()]});
  }
}

bool CheckedCache::step(std::span<const BatchEntry> batch, const StepOptions& options) {
  std::optional<StepPlan> plan = try_plan(batch, options);
  if (!plan && complete_moves()) plan = try_plan(batch, options);
  PlanOptions alone = options.plan;
  alone.limits.reset();
  std::vector<BatchEntry> twin_batch(batch.begin(), batch.end());
  for (BatchEntry& entry : twin_batch) entry.sequence = twins_.at(entry.sequence);
  Result<StepPlan> single = single_.try_plan(twin_batch, alone);
  if (plan.has_value() != single.has_value()) {
    throw Error("plan: one rank with the same number of pages decided otherwise than several");
  }
  if (!plan) return false;
  Step step(batch, options, std::move(*plan), std::move(*single));
  add_queries(step);
  const StepLimits room = options.plan.limits.value_or(StepLimits{.sequences = 0});
  expect(step.plan.query_tokens() ==
             (options.plan.limits ? room.sequences * room.query_tokens : std::ssize(step.queries)),
         "plan: wrong number of queries");
  states_.step(batch, random_);
  for (int layer = 0; layer < cache_.options().layers; ++layer) {
    if (of(layer).state_bytes == 0) run_layer(step, layer);
  }
  if (std::ranges::any_of(of_layers_, [](const CacheOptions& it) { return it.window > 0; })) {
    poison_free_pages(cache_);
    poison_free_pages(single_);
  }
  return true;
}

HostTensor CheckedCache::random_sinks(int q_heads) {
  HostTensor sinks(Dtype::kFloat32, 1, 1, q_heads, mesh_->device());
  for (std::int64_t head = 0; head < sinks.dim(); ++head) {
    const float far = random_.one_in(2) ? -kInfinity : -1e4f;  // engines use both for no sink
    sinks.set(0, 0, head, random_.one_in(4) ? far : 4.0f * random_.real());
  }
  return sinks;
}

CheckedCache::Inputs CheckedCache::random_inputs(const Step& step, int layer) {
  const CacheOptions& cache = of(layer);
  const std::int64_t n = step.plan.query_tokens(), m = step.plan.append_tokens();
  const Dtype dtype =
      step.options.input.value_or(info_of(cache.dtype).has_scales ? Dtype::kFloat32 : cache.dtype);
  const std::int64_t queries = step.single.query_tokens(), appended = step.single.append_tokens();
  const std::int64_t values = is_latent(layer) ? 0 : appended;
  return {.q = random_tensor(dtype, n, queries, cache.q_heads, cache.k_dim),
          .k = random_tensor(dtype, m, appended, cache.kv_heads, cache.k_dim),
          .v = random_tensor(dtype, m, values, cache.kv_heads, cache.v_dim),
          .sinks = random_sinks(cache.q_heads)};
}

void CheckedCache::run_layer(Step& step, int layer) {
  Inputs inputs = random_inputs(step, layer);
  remember(step, layer, inputs.k, inputs.v);
  const Outputs here = run_here(step, layer, inputs);

  const LayerInput all = inputs_alone(step, layer, inputs);
  step.single.append(layer, all.k, all.v);
  const bool is_reproducible = of(layer).reproducible;
  const Outputs single =
      is_reproducible ? run_alone(step, layer, all) : attend_alone(step, layer, all.q, all.sinks);
  const HostTensor& q = inputs.q;
  const Dtype rounded_type = rounded_query_type(mesh_->device(), of(layer).dtype, q.dtype());
  const auto check = [&](const HostTensor& rounded_q, const Outputs& rounded) {
    check_layer(step, {layer, q, rounded_q, inputs.sinks, here.o, here.lse, single, rounded});
  };
  if (rounded_type == q.dtype()) return check(q, single);
  const HostTensor rounded = rounded_rows(q, step.single.query_tokens(), rounded_type);
  if (is_reproducible) return check(rounded, single);
  check(rounded, attend_alone(step, layer, rounded.view(), all.sinks));
}

CheckedCache::Outputs CheckedCache::run_here(Step& step, int layer, Inputs& inputs) {
  const CacheOptions& cache = of(layer);
  const StepOptions& options = step.options;
  const std::int64_t tokens = step.plan.tokens_of_output().size();
  const std::int64_t heads = step.plan.heads_of_output(layer).size();
  const Device device = mesh_->device();
  Outputs out{.o = {options.output, tokens, heads, cache.v_dim, device},
              .lse = {Dtype::kFloat32, tokens, heads, 1, device}};
  const IndexRange q_heads = local(cache.q_heads), kv_heads = local(cache.kv_heads);
  const LayerInput input{
      inputs.q.on_device(q_heads), inputs.k.on_device(kv_heads),
      is_latent(layer) ? TensorView{} : inputs.v.on_device(kv_heads),
      options.sinks ? some_heads(inputs.sinks.on_device(), q_heads) : ConstTensorView{}};
  HostTensor gathered(inputs.q.dtype(), options.gathers ? inputs.q.rows() : 0, q_heads.size(),
                      inputs.q.dim(), device);
  run_on_ranks(step, layer, input, options.gathers ? gathered.on_device() : TensorView{},
               {out.o.on_device(), options.lse ? out.lse.matrix_on_device() : TensorView{}});
  mesh_->wait({}, "run");
  if (options.gathers) compare_gathered(step, gathered, inputs.q, q_heads);
  out.o.fetch();
  if (options.lse) out.lse.fetch();
  expect(out.o.gaps_untouched(), "combine wrote between the rows of its output");
  return out;
}

LayerInput CheckedCache::inputs_alone(const Step& step, int layer, Inputs& inputs) const {
  const bool on_gpu = single_mesh_.device().kind == DeviceKind::kCuda;
  const auto view = [&](HostTensor& of) { return on_gpu ? of.on_device() : of.view(); };
  const std::int64_t queries = step.single.query_tokens(), appended = step.single.append_tokens();
  LayerInput all{.q = some_rows(view(inputs.q), 0, queries),
                 .k = some_rows(view(inputs.k), 0, appended)};
  if (!is_latent(layer)) all.v = some_rows(view(inputs.v), 0, appended);
  if (step.options.sinks) all.sinks = some_heads(view(inputs.sinks), {0, of(layer).q_heads});
  return all;
}

CheckedCache::Outputs CheckedCache::outputs_of(const Step& step, int layer) const {
  const CacheOptions& cache = of(layer);
  const std::int64_t queries = step.single.query_tokens();
  const Device device = single_mesh_.device();
  return {.o = {Dtype::kFloat32, queries, cache.q_heads, cache.v_dim, device},
          .lse = {Dtype::kFloat32, queries, cache.q_heads, 1, device}};
}

// A partial over all keys is the whole answer.
CheckedCache::Outputs CheckedCache::attend_alone(Step& step, int layer, const ConstTensorView& q,
                                                 const ConstTensorView& sinks) {
  Outputs out = outputs_of(step, layer);
  const Partial all{out.o.view(), out.lse.matrix()};
  if (step.options.lists.empty()) {
    step.single.attend_partial(layer, q, all, {}, sinks);
    return out;
  }
  std::vector<BatchEntry> batch(step.batch.begin(), step.batch.end());
  for (BatchEntry& entry : batch) entry.sequence = twins_.at(entry.sequence);
  PlanOptions options = options_of_layer(step.options.plan, layer, of(layer).window);
  options.limits.reset();
  single_external_.plan(layer, batch, options, step.options.lists)
      .attend_partial(single_.pool(layer), q, all, {}, sinks);
  return out;
}

// Each sequence in a batch of its own; with a block mask, which is for one batch, all together.
CheckedCache::Outputs CheckedCache::run_alone(Step& step, int layer, const LayerInput& all) {
  Outputs out = outputs_of(step, layer);
  const TensorView o = out.o.on_device(), lse = out.lse.matrix_on_device();
  const auto fetched = [&] {
    single_mesh_.wait({}, "run");
    out.o.fetch();
    out.lse.fetch();
    return std::move(out);
  };
  if (step.options.plan.block_mask) {
    step.single.run(layer, all, {o, lse});
    return fetched();
  }
  PlanOptions options = step.options.plan;
  options.limits.reset();
  std::int64_t begin = 0;
  for (std::size_t s = 0; s < step.batch.size(); ++s) {
    const BatchEntry& entry = step.batch[s];
    const std::int64_t queries = queries_of(entry);
    if (queries == 0) continue;
    std::span<const std::int64_t> positions(options.q_positions);
    if (!positions.empty())
      positions =
          positions.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(queries));
    StepPlan plan = single_.plan({{twins_.at(entry.sequence), 0, queries}},
                                 alone_in_batch(options, static_cast<std::int32_t>(s), positions));
    const auto rows = [&](const auto& view) { return some_rows(view, begin, queries); };
    const ConstTensorView no_values = is_latent(layer) ? all.v : some_rows(all.v, 0, 0);
    plan.run(layer, {rows(all.q), some_rows(all.k, 0, 0), no_values, all.sinks},
             {rows(o), rows(lse)});
    begin += queries;
  }
  return fetched();
}

void CheckedCache::remember(const Step& step, int layer, const HostTensor& k, const HostTensor& v) {
  const CacheOptions& cache = of(layer);
  const auto stored = [&](const HostTensor& from, std::int64_t row, std::int64_t head, float scale,
                          const std::vector<float>& of_heads) {
    if (!of_heads.empty()) scale = of_heads[static_cast<std::size_t>(head)];
    return stored_row(from.elements(row, head), cache.dtype, cache.scales, scale);
  };
  std::int64_t row = 0;
  for (const BatchEntry& entry : step.batch) {
    DenseSequence& dense = content_.at(entry.sequence)[static_cast<std::size_t>(layer)];
    for (const std::int64_t end = row + entry.append_tokens; row < end; ++row) {
      for (std::int64_t head = 0; head < cache.kv_heads; ++head) {
        const std::vector<float> key = stored(k, row, head, cache.scales.k, cache.scales.k_heads);
        const std::vector<float> value =
            is_latent(layer) ? key : stored(v, row, head, cache.scales.v, cache.scales.v_heads);
        dense.k.insert(dense.k.end(), key.begin(), key.end());
        dense.v.insert(dense.v.end(), value.begin(), value.begin() + cache.v_dim);
      }
    }
  }
}

}  // namespace kvmesh::verify
