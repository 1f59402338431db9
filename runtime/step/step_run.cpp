#include "runtime/step/step_run.hpp"

#include <algorithm>
#include <vector>

#include "core/check.hpp"
#include "core/checked.hpp"
#include "kernels/attend_checks.hpp"

namespace kvmesh {
namespace {

StepOptions checked(StepOptions options) {
  const CombineOptions& combine = options.combine;
  for (const AttentionOptions& kind : options.kinds) check_scale(kind.scale);
  require(combine.scatter <= Scatter::kOwner && combine.strategy <= CombineStrategy::kAllReduce,
          "plan: scatter {} or strategy {} is not valid", static_cast<int>(combine.scatter),
          static_cast<int>(combine.strategy));
  require(!combine.way || static_cast<int>(*combine.way) < kWayKinds, "plan: way {} is not valid",
          static_cast<int>(combine.way.value_or(WayKind::kHost)));
  require(combine.travels_as <= Dtype::kBFloat16, "plan: partials cannot travel as dtype {}",
          static_cast<int>(combine.travels_as));
  check_fixed_split(options.fixed_split_tokens, options.shape.page_size);
  if (options.reproducible) options.fixed_split_tokens = 0;
  // Prefixes that sequences share would be summed apart in some batches only.
  if (options.fixed_split_tokens > 0) options.shares_prefixes = false;
  return options;
}

}  // namespace

CombineOptions combine_options(const PlanOptions& options) {
  // A reduction adds in an order that depends on a row's place; kAuto may become one by their
  // number.
  const bool merges_in_order =
      options.fixed_split_tokens > 0 && options.strategy == CombineStrategy::kAuto;
  return {.scatter = options.scatter,
          .strategy = merges_in_order ? CombineStrategy::kAllToAll : options.strategy,
          .way = options.way,
          .travels_as = options.travels_as};
}

std::int64_t tokens_of(const std::optional<StepLimits>& limits, std::int64_t tokens) {
  return limits ? limits->sequences * limits->query_tokens : tokens;
}

StepRun::StepRun(Mesh& mesh, Backend& backend, const StepOptions& options,
                 std::span<const BatchEntry> first)
    : mesh_(mesh), options_(checked(options)), kernels_(backend.make_step(options_, first)) {
  if (!options_.limits) return;
  static_cast<void>(partial_bytes(query_tokens()));
  make_partial();
}

void StepRun::check(std::span<const SequenceSize> batch) const {
  std::int64_t queries = 0;
  for (const SequenceSize& size : batch) queries += size.queries;
  static_cast<void>(partial_bytes(room_for(queries)));
  kernels_->check(batch);
}

void StepRun::plan(const StepBatch& batch, Stream stream) {
  batch_ = &batch;
  make_partial();
  kernels_->plan(batch, stream);
}

// ---- Runs ----

void StepRun::run(const KvPool& pool, const LayerInput& input, const CombineOutput& output,
                  Stream stream, std::size_t kind, bool appends) {
  const AttendInput attended{input.q, input.sinks, kind};
  check_input(attended);
  check_output(output);
  kernels_->check_attend(attended, pool, partial_, output);
  const bool writes = appends && !has_no_tokens(input.k, input.v);
  if (writes) check_append(pool, input.k, input.v);
  if (writes) kernels_->append(pool, input.k, input.v, stream);
  kernels_->attend(attended, pool, partial_, output, stream);
}

void StepRun::append(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
                     Stream stream) {
  if (has_no_tokens(k, v)) return;
  check_append(pool, k, v);
  kernels_->append(pool, k, v, stream);
}

void StepRun::attend_partial(const KvPool& pool, const AttendInput& input, const Partial& out,
                             Stream stream) {
  check_input(input);
  check_attend_partial(options_.shape, query_tokens(), out);
  check_place(out.o, "attend_partial: o");
  check_place(out.lse, "attend_partial: lse");
  kernels_->check_attend_partial(input, pool);
  kernels_->attend_partial(input, pool, out, stream);
}

void StepRun::combine(const Partial& mine, const CombineOutput& output, Stream stream) {
  check_attend_partial(options_.shape, query_tokens(), mine);
  check_output(output);
  kernels_->check_combine(mine, output);
  kernels_->combine(mine, output, stream);
}

void StepRun::gather_queries(const ConstTensorView& mine, const TensorView& q, Stream stream) {
  check_gather(mine, q);
  kernels_->gather_queries(
      {.mine = mine, .all = q, .tokens = batch_->query_tokens(), .digest = batch_->digest()},
      stream);
}

// ---- The checks that are the same on all devices ----

void StepRun::check_place(const ConstTensorView& tensor, std::string_view name) const {
  require(tensor.empty() || tensor.device == mesh_.device(), "{} is in {}, the cache in {}", name,
          tensor.device, mesh_.device());
}

void StepRun::check_output(const CombineOutput& output) const {
  check_place(output.o, "output: o");
  check_place(output.lse, "output: lse");
}

void StepRun::check_input(const AttendInput& input) const {
  check_attend_rows("q", input.q, query_tokens(), options_.shape.q_heads, options_.shape.k_dim);
  check_place(input.q, "attend: q");
  check_sinks(options_.shape, input.sinks);
  check_place(input.sinks, "attend: sinks");
}

void StepRun::check_gather(const ConstTensorView& mine, const TensorView& q) const {
  constexpr const char* kOperation = "gather_queries";
  const AttentionShape& shape = options_.shape;
  const IndexRange heads = share(shape.q_heads);
  check_attend_rows("share", mine, query_tokens(), heads.size(), shape.k_dim, kOperation);
  check_attend_rows("q", q, query_tokens(), shape.q_heads, shape.k_dim, kOperation);
  check_output_tensor("gather_queries: q", q, 3);
  require(mine.dtype == q.dtype, "gather_queries: share and q must have one dtype, are {} and {}",
          name(mine.dtype), name(q.dtype));
  const auto* const place =
      static_cast<const std::byte*>(q.data) +
      heads.begin * q.stride(1) * static_cast<std::int64_t>(size_bytes(q.dtype));
  const auto differ = [&](int dim) {
    return mine.size(dim) > 1 && mine.stride(dim) != q.stride(dim);
  };
  require(mine.data != place || !(differ(0) || differ(1)),
          "gather_queries: the share begins at its heads' place in q, but has other strides");
  check_place(mine, "gather_queries: share");
  check_place(q, "gather_queries: q");
}

void StepRun::check_append(const KvPool& pool, const ConstTensorView& k,
                           const ConstTensorView& v) const {
  check_no_overlap("append", pool);
  check_new_tokens(k, v, pool, append_tokens());
  check_place(k, "append: k");
  check_place(v, "append: v");
  kernels_->check_append(pool);
}

// ---- The partial, and sizes ----

std::int64_t StepRun::partial_bytes(std::int64_t tokens) const {
  const AttentionShape& shape = options_.shape;
  return checked_product("plan: bytes of a partial",
                         {tokens, shape.q_heads, std::max(shape.k_dim, shape.v_dim),
                          static_cast<std::int64_t>(sizeof(float))});
}

/// With limits a run also merges rows that no batch has filled yet: they are zeroed.
void* StepRun::floats(GrowingBlock<DeviceMemory>& memory, std::int64_t count) {
  const auto make = [&](std::size_t bytes) {
    DeviceMemory larger(mesh_.device(), bytes);
    if (options_.limits) copy_bytes(larger.data(), std::vector<std::byte>(bytes).data(), bytes);
    return larger;
  };
  const bool on_gpu = mesh_.device().kind == DeviceKind::kCuda;
  if (memory.reserve(static_cast<std::size_t>(count) * sizeof(float), make, on_gpu)) {
    ++partial_growths_;
  }
  return memory.data();
}

void StepRun::make_partial() {
  if (!kernels_->needs_partial()) return;
  const std::int64_t n = query_tokens(), heads = options_.shape.q_heads;
  const std::int64_t dim = options_.shape.v_dim;
  const Device device = mesh_.device();
  partial_ = {{floats(partial_o_, n * heads * dim), Dtype::kFloat32, {n, heads, dim}, device},
              {floats(partial_lse_, n * heads), Dtype::kFloat32, {n, heads}, device}};
}

IndexRange StepRun::share(std::int64_t count) const {
  return share_of(count, mesh_.kv_rank().value, mesh_.kv_parallel());
}

IndexRange StepRun::tokens_of_output() const {
  const std::int64_t tokens = query_tokens();
  return options_.combine.scatter == Scatter::kTokens ? share(tokens) : IndexRange{0, tokens};
}

IndexRange StepRun::heads_of_output() const {
  const std::int64_t heads = options_.shape.q_heads;
  return options_.combine.scatter == Scatter::kHeads ? share(heads) : IndexRange{0, heads};
}

std::int64_t StepRun::workspace_bytes() const {
  if (mesh_.device().kind == DeviceKind::kCpu) return host_bytes();
  const std::size_t bytes = partial_o_.size_bytes() + partial_lse_.size_bytes();
  return kernels_->workspace_bytes() + static_cast<std::int64_t>(bytes);
}

std::int64_t StepRun::host_bytes() const {
  const bool is_host = mesh_.device().kind == DeviceKind::kCpu;
  const std::size_t partial = is_host ? partial_o_.size_bytes() + partial_lse_.size_bytes() : 0;
  const std::int64_t batch = batch_ ? batch_->size_bytes() : 0;
  return kernels_->host_bytes() + batch + static_cast<std::int64_t>(partial);
}

}  // namespace kvmesh
