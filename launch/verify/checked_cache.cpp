#include "launch/verify/checked_cache.hpp"

#include <fmt/format.h>

#include <cmath>
#include <type_traits>

namespace kvmesh::verify {
namespace {

// The same number of pages in all, so that both caches run out together.
CacheOptions on_one_rank(CacheOptions options, const Mesh& mesh) {
  options.pages_per_rank *= mesh.kv_parallel();
  return options;
}

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

std::int64_t queries_of(const BatchEntry& entry) {
  return entry.query_tokens < 0 ? entry.append_tokens : entry.query_tokens;
}

void poison_page(const TensorView& plane, std::int64_t page) {
  const auto size = static_cast<std::size_t>(plane.stride(0)) * size_bytes(plane.dtype);
  // All bits set is a NaN in every type.
  const std::vector<std::byte> poison(size, std::byte{0xFF});
  copy_bytes(static_cast<std::byte*>(plane.data) + static_cast<std::size_t>(page) * size,
             poison.data(), size);
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

// `options` for the sequence in row `row` of a batch, alone: its mods read that row's number.
PlanOptions alone_in_batch(const PlanOptions& options, std::int32_t row,
                           std::span<const std::int64_t> positions) {
  PlanOptions alone = options;
  if (!options.mask.is_identity()) {
    alone.mask = MaskMod([mask = options.mask, row](auto, auto h, auto q, auto kv) {
      return mask(Expr(row), h, q, kv);
    });
  }
  if (!options.score.is_identity()) {
    alone.score = ScoreMod([mod = options.score, row](auto score, auto, auto h, auto q, auto kv) {
      return mod(score, Expr(row), h, q, kv);
    });
  }
  alone.q_positions.assign(positions.begin(), positions.end());
  return alone;
}

// Of two numbers that may be the same infinity.
double distance(double a, double b) { return a == b ? 0 : std::abs(a - b); }

void poison_free_pages(KvCache& cache) {
  for (std::int32_t page = 0; page < cache.options().pages_per_rank; ++page) {
    if (cache.allocator().reference_count({cache.mesh().kv_rank(), page}) > 0) continue;
    for (int layer = 0; layer < cache.options().layers; ++layer) {
      for (const TensorView& plane : cache.planes(layer)) poison_page(plane, page);
    }
  }
}

}  // namespace

// A step in hand: both plans, and where each query token belongs.
struct CheckedCache::Step {
  struct Query {
    std::size_t entry = 0;
    std::int64_t position = 0;
  };

  Step(std::span<const BatchEntry> entries, const StepOptions& how, StepPlan planned,
       StepPlan planned_single)
      : batch(entries), options(how), plan(std::move(planned)), single(std::move(planned_single)) {}

  const MaskMod& visible() const { return options.visible ? *options.visible : options.plan.mask; }

  std::span<const BatchEntry> batch;
  const StepOptions& options;
  StepPlan plan;
  StepPlan single;
  std::vector<Query> queries;
};

struct CheckedCache::Outputs {
  HostTensor o, lse;
};

// One layer's queries, and what came of them here and on the single rank; there also of queries as
// this device may round them.
struct CheckedCache::LayerResult {
  int layer;
  const HostTensor& q;
  const HostTensor& o;
  const HostTensor& lse;
  const Outputs& single;
  const Outputs& rounded;
};

// A row of this rank's output: where it is there, and which it is of the batch and the model.
struct CheckedCache::Row {
  std::int64_t row, column;
  std::int64_t token, head;
};

CheckedCache::CheckedCache(Mesh& mesh, const CacheOptions& options, std::uint64_t seed)
    : mesh_(&mesh),
      single_mesh_(make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCpu}),
      cache_(mesh, options),
      single_(single_mesh_, on_one_rank(options, mesh)),
      random_(seed) {
  poison_free_pages(cache_);
  poison_free_pages(single_);
}

void CheckedCache::expect(bool ok, const char* message) {
  if (!ok) findings_.fail(message);
}

void CheckedCache::add_twin(SequenceId sequence, SequenceId twin) {
  expect(sequence.slot() == twin.slot() && sequence.generation() == twin.generation(),
         "one rank gave another id than several");
  twins_[sequence] = twin;
}

SequenceId CheckedCache::create() {
  const SequenceId sequence = cache_.create();
  add_twin(sequence, single_.create());
  const CacheOptions& options = cache_.options();
  content_[sequence].assign(static_cast<std::size_t>(options.layers), {.kv_heads = options.kv_heads,
                                                                       .k_dim = options.k_dim,
                                                                       .v_dim = options.v_dim,
                                                                       .k = {},
                                                                       .v = {}});
  return sequence;
}

SequenceId CheckedCache::fork(SequenceId sequence) {
  const SequenceId forked = cache_.fork(sequence);
  add_twin(forked, single_.fork(twins_.at(sequence)));
  content_[forked] = content_.at(sequence);
  return forked;
}

bool CheckedCache::try_reserve(SequenceId sequence, std::int64_t tokens) {
  const bool fits = cache_.try_reserve(sequence, tokens).has_value();
  expect(single_.try_reserve(twins_.at(sequence), tokens).has_value() == fits,
         "reserve: one rank with as many pages decided otherwise than several");
  return fits;
}

void CheckedCache::truncate(SequenceId sequence, std::int64_t length) {
  cache_.truncate(sequence, length);
  single_.truncate(twins_.at(sequence), length);
  for (DenseSequence& layer : content_.at(sequence)) {
    layer.k.resize(static_cast<std::size_t>(length * layer.kv_heads * layer.k_dim));
    layer.v.resize(static_cast<std::size_t>(length * layer.kv_heads * layer.v_dim));
  }
  poison_free_pages(cache_);
  poison_free_pages(single_);
}

void CheckedCache::erase(SequenceId sequence) {
  cache_.erase(sequence);
  single_.erase(twins_.at(sequence));
  twins_.erase(sequence);
  content_.erase(sequence);
  poison_free_pages(cache_);
  poison_free_pages(single_);
}

void CheckedCache::check_replicas() {
  cache_.check_replicas();
  cache_.allocator().verify_integrity();
}

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

Share CheckedCache::local(int heads) const {
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
  const std::uint64_t before = allocator().digest();
  if (!options.replanned) {
    if (Result<StepPlan> made = cache_.try_plan(batch, first)) plan = std::move(*made);
  } else if (!cache_.try_replan(*plan, batch, {}, options.plan.q_positions)) {
    plan.reset();
  }
  expect(plan || allocator().digest() == before,
         "plan: refused the batch and changed the allocator");
  return plan;
}

bool CheckedCache::step(std::span<const BatchEntry> batch, const StepOptions& options) {
  std::optional<StepPlan> plan = try_plan(batch, options);
  PlanOptions alone = options.plan;
  alone.limits.reset();
  std::vector<BatchEntry> twin_batch(batch.begin(), batch.end());
  for (BatchEntry& entry : twin_batch) entry.sequence = twins_.at(entry.sequence);
  Result<StepPlan> single = single_.try_plan(twin_batch, alone);
  if (plan.has_value() != single.has_value()) {
    throw Error("plan: one rank with as many pages decided otherwise than several");
  }
  if (!plan) return false;
  Step step(batch, options, std::move(*plan), std::move(*single));
  for (std::size_t s = 0; s < batch.size(); ++s) {
    const BatchEntry& entry = batch[s];
    const std::int64_t queries = queries_of(entry);
    const std::int64_t first = allocator().length(entry.sequence) - queries;
    for (std::int64_t i = 0; i < queries; ++i) {
      const std::vector<std::int64_t>& given = options.plan.q_positions;
      step.queries.push_back({s, given.empty() ? first + i : given[step.queries.size()]});
    }
  }
  const StepLimits room = options.plan.limits.value_or(StepLimits{.sequences = 0});
  expect(step.plan.query_tokens() ==
             (options.plan.limits ? room.sequences * room.query_tokens : std::ssize(step.queries)),
         "plan: wrong number of queries");
  for (int layer = 0; layer < cache_.options().layers; ++layer) run_layer(step, layer);
  return true;
}

void CheckedCache::run_layer(Step& step, int layer) {
  const CacheOptions& cache = cache_.options();
  const StepOptions& options = step.options;
  const std::int64_t n = step.plan.query_tokens(), m = step.plan.append_tokens();
  const Dtype input_dtype =
      options.input.value_or(info_of(cache.dtype).has_scales ? Dtype::kFloat32 : cache.dtype);
  const std::int64_t queries = step.single.query_tokens(), appended = step.single.append_tokens();
  HostTensor q = random_tensor(input_dtype, n, queries, cache.q_heads, cache.k_dim);
  HostTensor k = random_tensor(input_dtype, m, appended, cache.kv_heads, cache.k_dim);
  HostTensor v =
      random_tensor(input_dtype, m, is_latent() ? 0 : appended, cache.kv_heads, cache.v_dim);
  remember(step, layer, k, v);

  const std::int64_t tokens = step.plan.tokens_of_output().size();
  const std::int64_t heads = step.plan.heads_of_output().size();
  const Device device = mesh_->device();
  HostTensor o(options.output, tokens, heads, cache.v_dim, device);
  HostTensor lse(Dtype::kFloat32, tokens, heads, 1, device);
  const CombineOutput output{o.on_device(), options.lse ? lse.matrix_on_device() : TensorView{}};
  const Share q_heads = local(cache.q_heads), kv_heads = local(cache.kv_heads);
  const LayerInput input{q.on_device(q_heads), k.on_device(kv_heads),
                         is_latent() ? TensorView{} : v.on_device(kv_heads)};
  if (options.in_parts && !cache.reproducible) {
    HostTensor partial_o(Dtype::kFloat32, n, q_heads.size(), cache.v_dim, device);
    HostTensor partial_lse(Dtype::kFloat32, n, q_heads.size(), 1, device);
    const Partial mine{partial_o.on_device(), partial_lse.matrix_on_device()};
    step.plan.append(layer, input.k, input.v);
    step.plan.attend_partial(layer, input.q, mine);
    mesh_->wait({}, "attend_partial");
    partial_o.fetch();
    expect(partial_o.gaps_untouched(), "attend_partial wrote between the rows of its output");
    step.plan.combine(mine, output);
  } else {
    step.plan.run(layer, input, output);
  }
  mesh_->wait({}, "run");
  o.fetch();
  if (options.lse) lse.fetch();
  expect(o.gaps_untouched(), "combine wrote between the rows of its output");

  const LayerInput all{some_rows(q.view(), 0, queries), some_rows(k.view(), 0, appended),
                       is_latent() ? TensorView{} : some_rows(v.view(), 0, appended)};
  step.single.append(layer, all.k, all.v);
  const Outputs single =
      cache.reproducible ? run_alone(step, layer, all) : attend_alone(step, layer, all.q);
  const Dtype rounded_type = rounded_query_type(device, cache.dtype, input_dtype);
  if (rounded_type == input_dtype) {
    check_layer(step, {layer, q, o, lse, single, single});
    return;
  }
  const HostTensor rounded = rounded_rows(q, queries, rounded_type);
  check_layer(step, {layer, q, o, lse, single, attend_alone(step, layer, rounded.view())});
}

CheckedCache::Outputs CheckedCache::outputs_of(const Step& step) const {
  const CacheOptions& cache = cache_.options();
  const std::int64_t queries = step.single.query_tokens();
  return {.o = {Dtype::kFloat32, queries, cache.q_heads, cache.v_dim},
          .lse = {Dtype::kFloat32, queries, cache.q_heads, 1}};
}

// A partial over all keys is the whole answer.
CheckedCache::Outputs CheckedCache::attend_alone(Step& step, int layer, const ConstTensorView& q) {
  Outputs out = outputs_of(step);
  step.single.attend_partial(layer, q, {out.o.view(), out.lse.matrix()});
  return out;
}

// Each sequence in a batch of its own; of a block mask, which is for one batch, all together.
CheckedCache::Outputs CheckedCache::run_alone(Step& step, int layer, const LayerInput& all) {
  Outputs out = outputs_of(step);
  if (step.options.plan.block_mask) {
    step.single.run(layer, all, {out.o.view(), out.lse.matrix()});
    return out;
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
    const ConstTensorView no_values = is_latent() ? all.v : some_rows(all.v, 0, 0);
    plan.run(layer, {rows(all.q), some_rows(all.k, 0, 0), no_values},
             {rows(out.o.view()), rows(out.lse.matrix())});
    begin += queries;
  }
  return out;
}

void CheckedCache::remember(const Step& step, int layer, const HostTensor& k, const HostTensor& v) {
  const CacheOptions& cache = cache_.options();
  const auto stored = [&](const HostTensor& from, std::int64_t row, std::int64_t head,
                          float scale) {
    return stored_row(from.elements(row, head), cache.dtype, cache.scales, scale);
  };
  std::int64_t row = 0;
  for (const BatchEntry& entry : step.batch) {
    DenseSequence& dense = content_.at(entry.sequence)[static_cast<std::size_t>(layer)];
    for (const std::int64_t end = row + entry.append_tokens; row < end; ++row) {
      for (std::int64_t head = 0; head < cache.kv_heads; ++head) {
        const std::vector<float> key = stored(k, row, head, cache.scales.k);
        const std::vector<float> value = is_latent() ? key : stored(v, row, head, cache.scales.v);
        dense.k.insert(dense.k.end(), key.begin(), key.end());
        dense.v.insert(dense.v.end(), value.begin(), value.begin() + cache.v_dim);
      }
    }
  }
}

void CheckedCache::check_layer(const Step& step, const LayerResult& result) {
  const Share tokens = step.plan.tokens_of_output(), heads = step.plan.heads_of_output();
  for (std::int64_t row = 0; row < result.o.rows(); ++row) {
    const std::int64_t t = tokens.begin + row;
    if (t >= std::ssize(step.queries)) break;  // room that the batch does not use
    // Where every rank has every row, each compares its turn of them with float64.
    const bool exact = step.options.plan.scatter != Scatter::kAll ||
                       t % mesh_->kv_parallel() == mesh_->kv_rank().value;
    for (std::int64_t h = 0; h < result.o.heads(); ++h) {
      const std::int64_t head = local(cache_.options().q_heads).begin + heads.begin + h;
      const auto single_o = [&](std::int64_t d) { return double{result.single.o.get(t, head, d)}; };
      const double single_lse = result.single.lse.get(t, head, 0);
      if (cache_.options().reproducible) {
        compare_bits(step, result, {row, h, t, head}, single_o, single_lse);
      } else {
        compare_row(step, result, {row, h, t, head}, "one rank", single_o, single_lse);
      }
      if (!exact) continue;
      const ReferenceRow want = reference(step, result, t, head);
      compare_row(
          step, result, {row, h, t, head}, "float64",
          [&](std::int64_t d) { return want.o[static_cast<std::size_t>(d)]; }, want.lse);
      findings_.add_rows(1);
    }
  }
}

std::string CheckedCache::place_of(const Step& step, const LayerResult& result, const Row& row,
                                   const std::string& what) const {
  const Step::Query& query = step.queries[static_cast<std::size_t>(row.token)];
  return fmt::format("layer {}, query {} of sequence {} at position {}, head {}: {}", result.layer,
                     row.token, describe(step.batch[query.entry].sequence), query.position,
                     row.head, what);
}

template <class WantO>
void CheckedCache::compare_bits(const Step& step, const LayerResult& result, const Row& row,
                                const WantO& want_o, double want_lse) {
  const auto where = [&](const std::string& what) {
    return place_of(step, result, row, what + " by one rank, which must have the same bits");
  };
  const Bound none{.tolerance = 0};
  for (std::int64_t d = 0; d < result.o.dim(); ++d) {
    const float want = rounded_to(step.options.output, static_cast<float>(want_o(d)));
    findings_.compare(result.o.get(row.row, row.column, d), want, none,
                      [&] { return where(fmt::format("o[{}]", d)); });
  }
  if (!step.options.lse) return;
  findings_.compare(result.lse.get(row.row, row.column, 0), want_lse, none,
                    [&] { return where("lse"); });
}

template <class WantO>
void CheckedCache::compare_row(const Step& step, const LayerResult& result, const Row& row,
                               const char* with, const WantO& want_o, double want_lse) {
  const auto where = [&](const std::string& what) {
    return place_of(step, result, row, fmt::format("{} by {}", what, with));
  };
  const auto spread = [&](HostTensor Outputs::*of, std::int64_t d) {
    return distance((result.single.*of).get(row.token, row.head, d),
                    (result.rounded.*of).get(row.token, row.head, d));
  };
  const Tolerances tolerances = arithmetic_tolerances(mesh_->device(), cache_.options().dtype);
  for (std::int64_t d = 0; d < result.o.dim(); ++d) {
    findings_.compare(
        result.o.get(row.row, row.column, d), want_o(d),
        {.tolerance = tolerances.o, .spread = spread(&Outputs::o, d), .dtype = step.options.output},
        [&] { return where(fmt::format("o[{}]", d)); });
  }
  if (!step.options.lse) return;
  findings_.compare(result.lse.get(row.row, row.column, 0), want_lse,
                    {.tolerance = tolerances.lse, .spread = spread(&Outputs::lse, 0)},
                    [&] { return where("lse"); });
}

ReferenceRow CheckedCache::reference(const Step& step, const LayerResult& result, std::int64_t t,
                                     std::int64_t head) const {
  const CacheOptions& cache = cache_.options();
  const PlanOptions& plan = step.options.plan;
  const Step::Query& at = step.queries[static_cast<std::size_t>(t)];
  std::vector<float> query;
  for (std::int64_t d = 0; d < cache.k_dim; ++d) query.push_back(result.q.get(t, head, d));
  const float scale = plan.scale.value_or(1.0f / std::sqrt(static_cast<float>(cache.k_dim)));
  const Layers& layers = content_.at(step.batch[at.entry].sequence);
  return reference_row(layers[static_cast<std::size_t>(result.layer)], query.data(), scale,
                       step.visible(), plan.score, static_cast<std::int32_t>(at.entry),
                       static_cast<std::int32_t>(head), cache.q_heads / cache.kv_heads,
                       static_cast<std::int32_t>(at.position));
}

}  // namespace kvmesh::verify
