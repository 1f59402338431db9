#include "runtime/cache/plan/group_step.hpp"

#include <limits>

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
                   .shares_prefixes = options.shares_prefixes,
                   .least_saved_tokens = options.least_saved_tokens,
                   .fixed_split_tokens = options.fixed_split_tokens,
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
    : group_(group), limits_(with_pages(options.limits, group.options)) {
  if (group.has_states()) return;
  batch_.set_members(mesh.membership());
  run_.emplace(mesh, *group.backend, step_options(group, mesh, options, limits_), first);
}

void GroupStep::plan(std::span<const BatchEntry> batch, std::span<const SequenceSize> sizes,
                     std::span<const std::int64_t> q_positions, const PlanDigest& digest,
                     Stream stream) {
  if (!run_) return;
  make_step_batch(group_.allocator, group_.local_pages, batch, sizes, q_positions, batch_);
  batch_.set_digest(digest);
  run_->plan(batch_, stream);
}

std::optional<SequenceId> GroupStep::changed_sequence() const {
  for (const SequenceStep& it : batch_.sequences()) {
    if (!group_.allocator.contains(it.sequence) ||
        group_.allocator.version(it.sequence) != it.version)
      return it.sequence;
  }
  return std::nullopt;
}

}  // namespace kvmesh
