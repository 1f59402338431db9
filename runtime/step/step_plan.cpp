// plan: once per step. run: once per layer.
#include <algorithm>
#include <utility>
#include <vector>

#include "core/check.hpp"
#include "core/checked.hpp"
#include "kernels/attend_checks.hpp"
#include "kvmesh/device_memory.hpp"
#include "runtime/cache_state.hpp"
#include "runtime/mesh/replica_check.hpp"
#include "runtime/step/step_batch.hpp"

namespace kvmesh {
namespace {

constexpr bool kChecksEveryStep = PlanHistory::kInterval == 1;

}  // namespace

class StepPlan::State final : public CacheUser {
 public:
  /// Makes the kernels for batches like this one. The allocator has not appended the batch yet, and
  /// nothing is planned here.
  State(KvCache::State& owner, std::span<const BatchEntry> batch, const PlanOptions& options)
      : cache_(&owner),
        combine_{.scatter = options.scatter,
                 .strategy = options.strategy,
                 .way = options.way,
                 .travels_as = options.travels_as},
        limits_(options.limits),
        hashes_(hashes_of(options)) {
    check_scale(options.scale);
    require(options.scatter <= Scatter::kOwner && options.strategy <= CombineStrategy::kAllReduce,
            "plan: scatter {} or strategy {} is none", static_cast<int>(options.scatter),
            static_cast<int>(options.strategy));
    require(!options.way || *options.way <= WayKind::kPeer, "plan: way {} is none",
            static_cast<int>(options.way.value_or(WayKind::kHost)));
    require(options.travels_as <= Dtype::kBFloat16, "plan: dtype {} is none",
            static_cast<int>(options.travels_as));
    if (options.block_mask) block_mask_ = *options.block_mask;
    if (limits_ && limits_->pages == 0) limits_->pages = owner.options.pages_per_rank;
    kernels_ = owner.backend->make_step(step_options(options), batch);
    if (limits_) {
      static_cast<void>(partial_bytes(query_tokens()));
      make_partial();
    }
    owner.users.insert(this);
  }

  ~State() {
    if (cache_ == nullptr) return;
    cache_->let_go();
    cache_->users.erase(this);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  /// Destroys the kernels before the backend that they use. After this call the plan refuses
  /// everything.
  void cache_ends() noexcept override {
    kernels_.reset();
    cache_ = nullptr;
  }
  bool is_of(const KvCache::State& cache) const { return cache_ == &cache; }

  /// Refuses a batch that is too large, before the allocator appends.
  void check(std::span<const SequenceSize> batch) const {
    std::int64_t queries = 0;
    for (const SequenceSize& size : batch) queries += size.queries;
    static_cast<void>(partial_bytes(room_for(queries)));
    kernels_->check(batch);
  }

  /// REQUIRES: the allocator has appended the batch's tokens.
  void plan(std::span<const BatchEntry> batch, std::span<const std::int64_t> q_positions,
            Stream stream) {
    is_planned_ = false;
    make_step_batch(cache_->allocator, cache_->local_pages, batch, q_positions, step_);
    step_.digest = cache_->history.digest();
    make_partial();
    kernels_->plan(step_, stream);
    is_planned_ = true;
    good_at_ = cache_->allocator.digest();
  }

  /// For batches that are planned in place.
  StepRules rules(std::span<const std::int64_t> q_positions) const {
    return {q_positions, block_mask_ ? &*block_mask_ : nullptr, limits_};
  }
  /// Hashes of the plan's options, and of a batch that is not appended yet.
  PlanHashes hashes(std::span<const BatchEntry> batch,
                    std::span<const std::int64_t> q_positions) const {
    return with_batch(hashes_, batch, q_positions, cache_->allocator);
  }
  std::int64_t query_tokens() const { return room_for(step_.query_tokens); }
  std::int64_t append_tokens() const { return room_for(step_.append_tokens); }
  const Participation& participation() {
    step_.participants ? check_cache() : check_current();
    return step_.participation();
  }
  TileCounts tiles() const {
    check_planned();
    cache_->backend->settle();
    return kernels_->tiles();
  }
  std::int64_t workspace_bytes() const {
    check_cache();
    if (cache_->mesh.device().kind == DeviceKind::kCpu) return host_bytes();
    std::size_t bytes = partial_o_.size_bytes() + partial_lse_.size_bytes();
    for (const DeviceMemory& memory : outgrown_) bytes += memory.size_bytes();
    return kernels_->workspace_bytes() + static_cast<std::int64_t>(bytes);
  }
  std::int64_t host_bytes() const {
    check_cache();
    const bool is_host = cache_->mesh.device().kind == DeviceKind::kCpu;
    const std::size_t partial = is_host ? partial_o_.size_bytes() + partial_lse_.size_bytes() : 0;
    return kernels_->host_bytes() + step_.size_bytes() + static_cast<std::int64_t>(partial);
  }
  std::uint64_t generation() const {
    check_cache();
    return kernels_->generation() + partial_growths_;
  }

  void run(int layer, const LayerInput& input, const CombineOutput& output, Stream stream) {
    check_current();
    const AttendInput attended{input.q, input.sinks};
    check_run(attended, output);
    append(layer, input.k, input.v, stream);
    kernels_->attend(attended, pool(layer), partial_, output, stream);
  }

  void append(int layer, const ConstTensorView& k, const ConstTensorView& v, Stream stream) {
    check_current();
    const KvPool to = pool(layer);
    if (k.empty() && v.empty() && step_.append_tokens == 0 && !limits_) return;
    check_new_tokens(k, v, to, append_tokens());
    check_place(k, "append: k");
    check_place(v, "append: v");
    kernels_->append(to, k, v, stream);
  }

  void attend_partial(int layer, const AttendInput& input, const Partial& out, Stream stream) {
    check_current();
    const AttentionShape& shape = cache_->shape.attention;
    check_input(input);
    check_attend_partial(shape, query_tokens(), out);
    check_place(out.o, "attend_partial: o");
    check_place(out.lse, "attend_partial: lse");
    kernels_->attend_partial(input, pool(layer), out, stream);
  }

  void combine(const Partial& mine, const CombineOutput& output, Stream stream) {
    check_current();
    check_attend_partial(cache_->shape.attention, query_tokens(), mine);
    check_output(output);
    kernels_->combine(mine, output, stream);
  }

  /// Checks that float32 partials may be taken out of the step and put back.
  void check_in_parts() const {
    check_cache();
    if (cache_->options.reproducible) {
      throw Unsupported("plan: a reproducible cache's plan only runs as a whole");
    }
  }

  Share tokens_of_output() const {
    check_cache();
    return combine_.scatter == Scatter::kTokens ? share(query_tokens()) : Share{0, query_tokens()};
  }
  Share heads_of_output() const {
    check_cache();
    const std::int64_t heads = cache_->shape.attention.q_heads;
    return combine_.scatter == Scatter::kHeads ? share(heads) : Share{0, heads};
  }

 private:
  StepOptions step_options(const PlanOptions& options) const {
    const AttentionShape& shape = cache_->shape.attention;
    return {
        .shape = shape,
        .format = cache_->shape.format,
        // Partial blocks are masked with the mod that the block mask was made from.
        .attention = {.scale = options.scale,
                      .mask = options.block_mask ? options.block_mask->mask_mod() : options.mask,
                      .score = options.score,
                      .first_head = cache_->mesh.head_rank() * shape.q_heads},
        .block_mask = block_mask_ ? &*block_mask_ : nullptr,
        .combine = combine_,
        .limits = limits_,
        .reproducible = cache_->options.reproducible};
  }

  void check_cache() const { require(cache_ != nullptr, "plan: its cache is gone"); }
  void check_planned() const {
    check_cache();
    require(is_planned_, "plan: its last replan failed half way: plan it again first");
  }

  /// Checks that no sequence of the plan has changed since. An unchanged digest means that nothing
  /// in the allocator has changed, so the loop is skipped.
  void check_current() {
    check_planned();
    const PageAllocator& allocator = cache_->allocator;
    if (allocator.digest() == good_at_) return;
    for (const SequenceStep& it : step_.sequences) {
      require(allocator.contains(it.sequence) && allocator.version(it.sequence) == it.version,
              "plan: sequence {} was appended to, truncated or erased since the plan was made",
              it.sequence);
    }
    good_at_ = allocator.digest();
  }

  std::int64_t room_for(std::int64_t tokens) const {
    return limits_ ? limits_->sequences * limits_->query_tokens : tokens;
  }

  /// Device check; the kernels check everything else.
  void check_place(const ConstTensorView& tensor, std::string_view name) const {
    const Device device = cache_->mesh.device();
    require(tensor.empty() || tensor.device == device, "{} is in {}, the cache in {}", name,
            tensor.device, device);
  }

  void check_output(const CombineOutput& output) const {
    check_output_tensor("output: o", output.o, 3);
    if (!output.lse.empty()) check_output_tensor("output: lse", output.lse, 2);
    check_place(output.o, "output: o");
    check_place(output.lse, "output: lse");
  }

  // Checks before append writes anything: all that append does not check itself.
  void check_run(const AttendInput& input, const CombineOutput& output) const {
    check_input(input);
    check_output(output);
    kernels_->check_attend(partial_, output);
  }

  void check_input(const AttendInput& input) const {
    const AttentionShape& shape = cache_->shape.attention;
    check_attend_rows("q", input.q, query_tokens(), shape.q_heads, shape.k_dim);
    check_place(input.q, "attend: q");
    check_sinks(shape, input.sinks);
    check_place(input.sinks, "attend: sinks");
  }

  std::int64_t partial_bytes(std::int64_t tokens) const {
    const AttentionShape& shape = cache_->shape.attention;
    return checked_product("plan: bytes of a partial",
                           {tokens, shape.q_heads, std::max(shape.k_dim, shape.v_dim),
                            static_cast<std::int64_t>(sizeof(float))});
  }

  KvPool pool(int layer) const {
    require(layer >= 0 && layer < cache_->options.layers, "plan: layer {} of {}", layer,
            cache_->options.layers);
    return cache_->pool(layer);
  }

  /// With limits a run also merges rows that no batch has filled yet: they are zeroed.
  void make_partial() {
    if (!kernels_->needs_partial()) return;
    const std::int64_t n = query_tokens(), heads = cache_->shape.attention.q_heads;
    const std::int64_t dim = cache_->shape.attention.v_dim;
    const Device device = cache_->mesh.device();
    const auto floats = [&](DeviceMemory& memory, std::int64_t count) {
      const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
      if (memory.size_bytes() < bytes) {
        DeviceMemory larger(device, std::max(bytes, 2 * memory.size_bytes()));
        if (limits_) copy_bytes(larger.data(), std::vector<std::byte>(bytes).data(), bytes);
        // Runs on a GPU may still use the old buffer, and freeing it would wait for them.
        if (device.kind == DeviceKind::kCuda && memory.size_bytes() > 0)
          outgrown_.push_back(std::move(memory));
        memory = std::move(larger);
        ++partial_growths_;
      }
      return memory.data();
    };
    partial_ = {{floats(partial_o_, n * heads * dim), Dtype::kFloat32, {n, heads, dim}, device},
                {floats(partial_lse_, n * heads), Dtype::kFloat32, {n, heads}, device}};
  }

  Share share(std::int64_t count) const {
    return share_of(count, cache_->mesh.kv_rank().value, cache_->mesh.kv_parallel());
  }

  KvCache::State* cache_;  // null: the cache was destroyed
  CombineOptions combine_;
  std::optional<StepLimits> limits_;
  PlanHashes hashes_;  // of the options
  std::optional<BlockMask> block_mask_;
  StepBatch step_;
  std::unique_ptr<StepKernels> kernels_;
  DeviceMemory partial_o_;    // [tokens, q_heads, v_dim]
  DeviceMemory partial_lse_;  // [tokens, q_heads]
  std::vector<DeviceMemory> outgrown_;
  Partial partial_;
  std::uint64_t partial_growths_ = 0;
  bool is_planned_ = false;
  std::uint64_t good_at_ = 0;  // the allocator's digest when the plan was last known to be good
};

StepPlan::StepPlan() noexcept = default;
StepPlan::StepPlan(std::unique_ptr<State> state) : state_(std::move(state)) {}
StepPlan::~StepPlan() = default;
StepPlan::StepPlan(StepPlan&&) noexcept = default;
StepPlan& StepPlan::operator=(StepPlan&&) noexcept = default;

StepPlan::State& StepPlan::state() const {
  require(state_ != nullptr, "plan: there is none");
  return *state_;
}

std::int64_t StepPlan::query_tokens() const { return state().query_tokens(); }
std::int64_t StepPlan::append_tokens() const { return state().append_tokens(); }
void StepPlan::run(int layer, const LayerInput& input, const CombineOutput& output, Stream stream) {
  state().run(layer, input, output, stream);
}
void StepPlan::append(int layer, const ConstTensorView& k, const ConstTensorView& v,
                      Stream stream) {
  state().append(layer, k, v, stream);
}
void StepPlan::attend_partial(int layer, const ConstTensorView& q, const Partial& out,
                              Stream stream, const ConstTensorView& sinks) {
  state().check_in_parts();
  state().attend_partial(layer, {q, sinks}, out, stream);
}
void StepPlan::combine(const Partial& mine, const CombineOutput& output, Stream stream) {
  state().check_in_parts();
  state().combine(mine, output, stream);
}
Share StepPlan::tokens_of_output() const { return state().tokens_of_output(); }
Share StepPlan::heads_of_output() const { return state().heads_of_output(); }
const Participation& StepPlan::participation() const { return state().participation(); }
TileCounts StepPlan::tiles() const { return state().tiles(); }

std::int64_t StepPlan::workspace_bytes() const { return state().workspace_bytes(); }
std::int64_t StepPlan::host_bytes() const { return state().host_bytes(); }
std::uint64_t StepPlan::generation() const { return state().generation(); }

void KvCache::State::wait_for_peers() {
  if (mesh.kv_parallel() > 1) backend->settle();
}

void KvCache::State::let_go() noexcept {
  try {
    wait_for_peers();
  } catch (const std::exception&) {
    // The error is dropped: the NCCL group is broken now, and its next use reports that.
  }
}

Result<Done> KvCache::State::try_append(std::span<const BatchEntry> batch,
                                        const PlanHashes& hashes) {
  history.compare(mesh.world(), hashes, allocator);
  requests.clear();
  for (const BatchEntry& entry : batch) requests.push_back({entry.sequence, entry.append_tokens});
  const Result<std::vector<PageCopy>> copies = allocator.try_append(requests);
  if (!copies) return copies.reason();
  history.add(hashes);
  make_copies(*copies);
  return Done{};
}

void KvCache::State::make_copies(std::span<const PageCopy> copies) {
  if (kChecksEveryStep) kvmesh::check_replicas(allocator, mesh.world());
  copy_on_write(*backend, pools, peers, mesh.kv(), copies);
}

Result<StepPlan> KvCache::try_plan(std::span<const BatchEntry> batch, const PlanOptions& options) {
  const auto sizes = check_step(state().allocator, state().options, batch,
                                {options.q_positions, options.block_mask, options.limits});
  state().wait_for_peers();
  auto step = std::make_unique<StepPlan::State>(state(), batch, options);
  step->check(sizes);
  const auto appended = state().try_append(batch, step->hashes(batch, options.q_positions));
  if (!appended) return appended.reason();
  step->plan(batch, options.q_positions, {});
  state().mesh.wait({}, "plan");
  return StepPlan(std::move(step));
}

StepPlan KvCache::plan(std::span<const BatchEntry> batch, const PlanOptions& options) {
  return try_plan(batch, options).value();
}

Result<Done> KvCache::try_replan(StepPlan& step, std::span<const BatchEntry> batch, Stream stream,
                                 std::span<const std::int64_t> q_positions) {
  StepPlan::State& planned = step.state();
  require(planned.is_of(state()), "replan: the plan is another cache's, or its cache is gone");
  planned.check(check_step(state().allocator, state().options, batch, planned.rules(q_positions)));
  const auto appended = state().try_append(batch, planned.hashes(batch, q_positions));
  if (!appended) return appended.reason();
  planned.plan(batch, q_positions, stream);
  return Done{};
}

void KvCache::replan(StepPlan& step, std::span<const BatchEntry> batch, Stream stream,
                     std::span<const std::int64_t> q_positions) {
  try_replan(step, batch, stream, q_positions).value();
}

}  // namespace kvmesh
