#include "runtime/step/group_step.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/check.hpp"
#include "core/checked.hpp"
#include "kernels/attend_checks.hpp"

namespace kvmesh {
namespace {

std::optional<StepLimits> with_pages(std::optional<StepLimits> limits, const CacheOptions& group) {
  if (limits && limits->pages == 0) limits->pages = group.pages_per_rank;
  return limits;
}

MaskMod within(std::int64_t window, const MaskMod& mask) {
  if (window == 0 || window > std::numeric_limits<std::int32_t>::max()) return mask;
  const auto positions = static_cast<std::int32_t>(window);
  return mask && MaskMod([positions](auto, auto, auto q, auto kv) { return q - kv < positions; });
}

StepOptions step_options(const CacheGroup& group, const Mesh& mesh, const GroupStepOptions& options,
                         const std::optional<StepLimits>& limits) {
  StepOptions step{.shape = group.shape.attention,
                   .format = group.shape.format,
                   .kinds = options.kinds,
                   .block_mask = options.block_mask,
                   .combine = options.combine,
                   .limits = limits,
                   .reproducible = group.options.reproducible};
  for (AttentionOptions& kind : step.kinds) {
    kind.mask = within(group.options.window, kind.mask);
    kind.first_head = mesh.head_rank() * step.shape.q_heads;
  }
  return step;
}

}  // namespace

GroupStep::GroupStep(CacheGroup& group, Mesh& mesh, const GroupStepOptions& options,
                     std::span<const BatchEntry> first)
    : group_(group), mesh_(mesh), limits_(with_pages(options.limits, group.options)) {
  kernels_ = group.backend->make_step(step_options(group, mesh, options, limits_), first);
  if (limits_) {
    static_cast<void>(check_partial_bytes(query_tokens()));
    make_partial();
  }
}

void GroupStep::check(std::span<const SequenceSize> batch) const {
  std::int64_t queries = 0;
  for (const SequenceSize& size : batch) queries += size.queries;
  static_cast<void>(check_partial_bytes(room_for(queries)));
  kernels_->check(batch);
}

void GroupStep::plan(std::span<const BatchEntry> batch, std::span<const std::int64_t> q_positions,
                     const PlanDigest& digest, Stream stream) {
  make_step_batch(group_.allocator, group_.local_pages, batch, q_positions, batch_);
  batch_.digest = digest;
  make_partial();
  kernels_->plan(batch_, stream);
}

std::optional<SequenceId> GroupStep::changed_sequence() const {
  for (const SequenceStep& it : batch_.sequences) {
    if (!group_.allocator.contains(it.sequence) ||
        group_.allocator.version(it.sequence) != it.version)
      return it.sequence;
  }
  return std::nullopt;
}

void GroupStep::run(const KvPool& pool, const LayerInput& input, const CombineOutput& output,
                    Stream stream, std::size_t kind) {
  const AttendInput attended{input.q, input.sinks, kind};
  // Before append writes anything: all that append does not check itself.
  check_input(attended);
  check_output(output);
  kernels_->check_attend(partial_, output);
  append(pool, input.k, input.v, stream);
  kernels_->attend(attended, pool, partial_, output, stream);
}

void GroupStep::append(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
                       Stream stream) {
  if (k.empty() && v.empty() && batch_.append_tokens == 0 && !limits_) return;
  check_new_tokens(k, v, pool, append_tokens());
  check_place(k, "append: k");
  check_place(v, "append: v");
  kernels_->append(pool, k, v, stream);
}

void GroupStep::attend_partial(const KvPool& pool, const AttendInput& input, const Partial& out,
                               Stream stream) {
  check_input(input);
  check_attend_partial(shape(), query_tokens(), out);
  check_place(out.o, "attend_partial: o");
  check_place(out.lse, "attend_partial: lse");
  kernels_->attend_partial(input, pool, out, stream);
}

void GroupStep::combine(const Partial& mine, const CombineOutput& output, Stream stream) {
  check_attend_partial(shape(), query_tokens(), mine);
  check_output(output);
  kernels_->combine(mine, output, stream);
}

std::int64_t GroupStep::workspace_bytes() const {
  if (is_on_host()) return host_bytes();
  std::size_t bytes = partial_bytes();
  for (const DeviceMemory& memory : outgrown_) bytes += memory.size_bytes();
  return kernels_->workspace_bytes() + static_cast<std::int64_t>(bytes);
}

std::int64_t GroupStep::host_bytes() const {
  return kernels_->host_bytes() + batch_.size_bytes() +
         static_cast<std::int64_t>(is_on_host() ? partial_bytes() : 0);
}

/// Device check; the kernels check everything else.
void GroupStep::check_place(const ConstTensorView& tensor, std::string_view name) const {
  require(tensor.empty() || tensor.device == mesh_.device(), "{} is in {}, the cache in {}", name,
          tensor.device, mesh_.device());
}

void GroupStep::check_input(const AttendInput& input) const {
  check_attend_rows("q", input.q, query_tokens(), shape().q_heads, shape().k_dim);
  check_place(input.q, "attend: q");
  check_sinks(shape(), input.sinks);
  check_place(input.sinks, "attend: sinks");
}

void GroupStep::check_output(const CombineOutput& output) const {
  check_output_tensor("output: o", output.o, 3);
  if (!output.lse.empty()) check_output_tensor("output: lse", output.lse, 2);
  check_place(output.o, "output: o");
  check_place(output.lse, "output: lse");
}

std::int64_t GroupStep::check_partial_bytes(std::int64_t tokens) const {
  return checked_product("plan: bytes of a partial",
                         {tokens, shape().q_heads, std::max(shape().k_dim, shape().v_dim),
                          static_cast<std::int64_t>(sizeof(float))});
}

/// With limits a run also merges rows that no batch has filled yet: they are zeroed.
void GroupStep::make_partial() {
  if (!kernels_->needs_partial()) return;
  const std::int64_t n = query_tokens(), heads = shape().q_heads, dim = shape().v_dim;
  partial_ = {
      {floats(partial_o_, n * heads * dim), Dtype::kFloat32, {n, heads, dim}, mesh_.device()},
      {floats(partial_lse_, n * heads), Dtype::kFloat32, {n, heads}, mesh_.device()}};
}

void* GroupStep::floats(DeviceMemory& memory, std::int64_t count) {
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
  if (memory.size_bytes() < bytes) {
    DeviceMemory larger(mesh_.device(), std::max(bytes, 2 * memory.size_bytes()));
    if (limits_) copy_bytes(larger.data(), std::vector<std::byte>(bytes).data(), bytes);
    // Runs on a GPU may still use the old buffer, and freeing it would wait for them.
    if (!is_on_host() && memory.size_bytes() > 0) outgrown_.push_back(std::move(memory));
    memory = std::move(larger);
    ++partial_growths_;
  }
  return memory.data();
}

}  // namespace kvmesh
