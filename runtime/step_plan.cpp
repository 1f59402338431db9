// plan: once per step. run: once per layer.
#include "core/check.hpp"
#include "runtime/cache_state.hpp"
#include "runtime/step_batch.hpp"

namespace kvmesh {
namespace {

#ifdef NDEBUG
constexpr bool kCheckEveryStep = false;
#else
constexpr bool kCheckEveryStep = true;
#endif

}  // namespace

class StepPlan::State {
 public:
  State(KvCache::State& owner, std::span<const BatchEntry> batch, const PlanOptions& options)
      : cache_(&owner),
        step_(make_step_batch(owner.allocator, owner.mesh->kv_rank(), batch, options)),
        combine_{.scatter = options.scatter, .strategy = options.strategy},
        kernels_(make_kernels(batch, options)) {}

  std::int64_t query_tokens() const { return step_.attention.q_indptr.back(); }
  std::int64_t append_tokens() const { return std::ssize(step_.slots); }
  const Participation& participation() const { return step_.participation; }
  TileCounts tiles() const { return kernels_->tiles(); }

  void run(int layer, const LayerInput& input, const CombineOutput& output, Stream stream) {
    check_run(input.q, output);
    append(layer, input.k, input.v, stream);
    const Partial mine = partial();
    attend_partial(layer, input.q, mine, stream);
    combine(mine, output, stream);
  }

  void append(int layer, const ConstTensorView& k, const ConstTensorView& v, Stream stream) {
    kernels_->append(pool(layer), k, v, stream);
  }

  void attend_partial(int layer, const ConstTensorView& q, const Partial& out, Stream stream) {
    kernels_->attend_partial(q, pool(layer), out, stream);
  }

  void combine(const Partial& mine, const CombineOutput& output, Stream stream) {
    combine_.participation = &step_.participation;
    cache_->backend->combine(mine, combine_, output, stream);
  }

  Share tokens_of_output() const {
    return combine_.scatter == Scatter::kTokens ? share(query_tokens()) : Share{0, query_tokens()};
  }
  Share heads_of_output() const {
    const std::int64_t heads = cache_->shape.attention.q_heads;
    return combine_.scatter == Scatter::kHeads ? share(heads) : Share{0, heads};
  }

 private:
  std::unique_ptr<StepKernels> make_kernels(std::span<const BatchEntry> batch,
                                            const PlanOptions& options) {
    AttentionOptions attention{
        .scale = options.scale,
        .mask = options.mask,
        .score = options.score,
        .first_head = cache_->mesh->head_rank() * cache_->shape.attention.q_heads};
    if (!options.block_mask) return make_kernels(attention);
    // Partial blocks are masked with the mod that the block mask was made from.
    attention.mask = options.block_mask->mask_mod();
    const LocalBlockMask blocks =
        local_block_mask(cache_->allocator, cache_->mesh->kv_rank(), batch, *options.block_mask);
    attention.block_mask = &blocks;
    return make_kernels(attention);
  }

  std::unique_ptr<StepKernels> make_kernels(const AttentionOptions& options) {
    return cache_->backend->plan(cache_->shape.attention, cache_->shape.dtype, step_, options);
  }

  // What append does not look at, found before it writes.
  void check_run(const ConstTensorView& q, const CombineOutput& output) const {
    const AttentionShape& shape = cache_->shape.attention;
    require(is_rows(q, query_tokens(), shape.q_heads, shape.k_dim),
            "run: q must be [{}, {}, {}] (tokens, query heads, dim), is {}", query_tokens(),
            shape.q_heads, shape.k_dim, describe(q));
    const std::int64_t tokens = tokens_of_output().size(), heads = heads_of_output().size();
    require(is_rows(output.o, tokens, heads, shape.v_dim),
            "run: o must be [{}, {}, {}] (tokens, heads, dim), is {}", tokens, heads, shape.v_dim,
            describe(output.o));
    const TensorView& lse = output.lse;
    require(lse.empty() || (lse.dims == 2 && lse.size(0) == tokens && lse.size(1) == heads),
            "run: lse must be [{}, {}] (tokens, heads), is {}", tokens, heads, describe(lse));
  }

  static bool is_rows(const ConstTensorView& view, std::int64_t tokens, std::int64_t heads,
                      std::int64_t dim) {
    return view.dims == 3 && view.size(0) == tokens && view.size(1) == heads && view.size(2) == dim;
  }

  KvPool pool(int layer) const {
    require(layer >= 0 && layer < cache_->options.layers, "plan: layer {} of {}", layer,
            cache_->options.layers);
    return cache_->pools.layer(layer);
  }

  Partial partial() const {
    const std::int64_t n = query_tokens(), heads = cache_->shape.attention.q_heads;
    const std::int64_t dim = cache_->shape.attention.v_dim;
    const Device device = cache_->mesh->device();
    const auto floats = [&](DeviceMemory& memory, std::int64_t count) {
      const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
      if (memory.size_bytes() < bytes) memory = DeviceMemory(device, bytes);
      return memory.data();
    };
    return {{floats(cache_->partial_o, n * heads * dim), Dtype::kFloat32, {n, heads, dim}, device},
            {floats(cache_->partial_lse, n * heads), Dtype::kFloat32, {n, heads}, device}};
  }

  Share share(std::int64_t count) const {
    return share_of(count, cache_->mesh->kv_rank().value, cache_->mesh->kv_parallel());
  }

  KvCache::State* cache_;
  StepBatch step_;
  CombineOptions combine_;
  std::unique_ptr<StepKernels> kernels_;
};

StepPlan::StepPlan(std::unique_ptr<State> state) : state_(std::move(state)) {}
StepPlan::~StepPlan() = default;
StepPlan::StepPlan(StepPlan&&) noexcept = default;
StepPlan& StepPlan::operator=(StepPlan&&) noexcept = default;

std::int64_t StepPlan::query_tokens() const { return state_->query_tokens(); }
std::int64_t StepPlan::append_tokens() const { return state_->append_tokens(); }
void StepPlan::run(int layer, const LayerInput& input, const CombineOutput& output, Stream stream) {
  state_->run(layer, input, output, stream);
}
void StepPlan::append(int layer, const ConstTensorView& k, const ConstTensorView& v,
                      Stream stream) {
  state_->append(layer, k, v, stream);
}
void StepPlan::attend_partial(int layer, const ConstTensorView& q, const Partial& out,
                              Stream stream) {
  state_->attend_partial(layer, q, out, stream);
}
void StepPlan::combine(const Partial& mine, const CombineOutput& output, Stream stream) {
  state_->combine(mine, output, stream);
}
Share StepPlan::tokens_of_output() const { return state_->tokens_of_output(); }
Share StepPlan::heads_of_output() const { return state_->heads_of_output(); }
const Participation& StepPlan::participation() const { return state_->participation(); }
TileCounts StepPlan::tiles() const { return state_->tiles(); }

std::optional<StepPlan> KvCache::try_plan(std::span<const BatchEntry> batch,
                                          const PlanOptions& options) {
  check_step(state_->allocator, state_->options, batch, options);
  std::vector<AppendRequest> requests;
  for (const BatchEntry& entry : batch) requests.push_back({entry.sequence, entry.append_tokens});
  const std::optional<std::vector<PageCopy>> copies = state_->allocator.try_append(requests);
  if (!copies) return std::nullopt;
  if (kCheckEveryStep) check_replicas();
  copy_on_write(*state_->backend, state_->pools, state_->peers, state_->mesh->kv(), *copies);
  return StepPlan(std::make_unique<StepPlan::State>(*state_, batch, options));
}

StepPlan KvCache::plan(std::span<const BatchEntry> batch, const PlanOptions& options) {
  std::optional<StepPlan> step = try_plan(batch, options);
  if (step) return std::move(*step);
  // Ask again in the form that throws: it says how many pages are missing.
  std::vector<AppendRequest> requests;
  for (const BatchEntry& entry : batch) requests.push_back({entry.sequence, entry.append_tokens});
  state_->allocator.append(requests);
  throw Error("plan: the allocator refused a batch and then took it");
}

}  // namespace kvmesh
