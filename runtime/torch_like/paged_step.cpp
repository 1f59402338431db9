// The step that PagedAttention::forward plans and runs.
#include <map>

#include "core/check.hpp"
#include "kernels/attend_checks.hpp"
#include "kernels/attend_steps.hpp"
#include "runtime/mesh/replica_check.hpp"
#include "runtime/torch_like/paged_state.hpp"

namespace kvmesh {
namespace {

// The batch of one call: what a KvCache's plan computes of its sequences, from rows and kv_lens.
struct Batch {
  Batch(std::size_t size, const Membership& members) {
    local.reserve(size);  // `step` points into it
    step.set_members(members);
  }
  void add(SequenceId row, std::int64_t length, std::int64_t first_position, std::int64_t q_len) {
    entries.push_back({row, 0, q_len});
    sizes.push_back({.queries = q_len, .length = length, .first_query = first_position});
    step.add({.sequence = row, .size = sizes.back(), .pages = &local.back()});
    for (std::int64_t i = 0; i < q_len; ++i) step.add_position(first_position + i);
  }

  std::vector<BatchEntry> entries;
  std::vector<SequenceSize> sizes;
  std::vector<LocalSequence> local;
  StepBatch step;
};

/// The pages of a row's first `length` tokens. @throws InvalidArgument if there are not as many.
std::span<const PageId> pages_of(const PageAllocator& allocator, SequenceId row, int number,
                                 std::int64_t length) {
  const std::span<const PageId> table = allocator.pages(row);
  const std::int64_t page_size = allocator.options().page_size;
  const std::int64_t room = std::ssize(table) * page_size;
  require(length >= 0 && length <= room, "forward: row {} has room for {} tokens, kv_lens says {}",
          number, room, length);
  return table.first(static_cast<std::size_t>((length + page_size - 1) / page_size));
}

LocalSequence local_pages(std::span<const PageId> table, PageRank me, int ranks) {
  LocalSequence local;
  local.held.resize(static_cast<std::size_t>(ranks));
  for (std::size_t logical = 0; logical < table.size(); ++logical) {
    const PageId page = table[logical];
    ++local.held[static_cast<std::size_t>(page.rank().value)];
    if (page.rank() != me) continue;
    local.pages.push_back({page.index(), static_cast<std::int32_t>(logical)});
  }
  return local;
}

// A device has one page list per row.
void check_repeated_rows(std::span<const int> rows, std::span<const std::int64_t> kv_lens) {
  std::map<int, std::int64_t> lengths;
  for (std::size_t b = 0; b < rows.size(); ++b) {
    require(lengths.emplace(rows[b], kv_lens[b]).first->second == kv_lens[b],
            "forward: row {} twice, with other lengths", rows[b]);
  }
}

// Position of the first query of batch row b.
std::int64_t first_position(const BlockMask* mask, std::size_t b) {
  if (mask == nullptr || mask->shape().q_start.empty()) return 0;
  return mask->shape().q_start[mask->shape().batch == 1 ? 0 : b];
}

// Returns the hashes that the ranks compare.
PlanHashes hashes(const PagedAttention::ForwardOptions& options, const Batch& batch,
                  std::span<const std::int64_t> kv_lens, const PageAllocator& allocator) {
  PlanOptions plan{.mask = MaskMod{},
                   .score = options.score_mod,
                   .scale = options.scale,
                   .block_mask = options.block_mask};
  const std::span<const std::int64_t> positions = batch.step.q_positions();
  std::vector<std::int64_t> numbers(positions.begin(), positions.end());
  numbers.insert(numbers.end(), kv_lens.begin(), kv_lens.end());
  return with_batch(hashes_of(plan), batch.entries, numbers, allocator.digest());
}

}  // namespace

StepOptions PagedAttention::State::step_options(const ConstTensorView& q, const KvPool& pool,
                                                const ForwardOptions& options) const {
  const auto size = [](std::int64_t extent) { return static_cast<int>(extent); };
  return {.shape = {.q_heads = size(q.size(1)),
                    .kv_heads = size(pool.k.size(1)),
                    .k_dim = size(q.size(2)),
                    .v_dim = size(pool.v.size(3)),
                    .page_size = size(page_size())},
          .format = {.dtype = pool.k.dtype},
          .kinds = {{.scale = options.scale,
                     .mask = options.block_mask ? options.block_mask->mask_mod()
                                                : mods::causal_upper_left(),
                     .score = options.score_mod}},
          .block_mask = options.block_mask,
          .combine = {.scatter = Scatter::kAll}};
}

// Nothing uses the last call's partial any more: a call returns when its work is done.
Partial PagedAttention::State::partial(std::int64_t tokens, std::int64_t heads, std::int64_t dim) {
  const auto floats = [&](DeviceMemory& memory, std::int64_t count) {
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
    if (memory.size_bytes() < bytes) {
      wait_for_peers();
      memory = DeviceMemory(mesh.device(), bytes);
    }
    return memory.data();
  };
  return {{floats(partial_o_, tokens * heads * dim),
           Dtype::kFloat32,
           {tokens, heads, dim},
           mesh.device()},
          {floats(partial_lse_, tokens * heads), Dtype::kFloat32, {tokens, heads}, mesh.device()}};
}

void PagedAttention::State::attend(std::span<const int> batch_rows,
                                   std::span<const std::int64_t> kv_lens, const ConstTensorView& q,
                                   const KvPool& pool, const CombineOutput& output,
                                   const ForwardOptions& options) {
  const std::int64_t q_len = batch_rows.empty() ? 0 : q.size(0) / std::ssize(batch_rows);
  Batch batch(batch_rows.size(), mesh.membership());
  for (std::size_t b = 0; b < batch_rows.size(); ++b) {
    const SequenceId row = rows[static_cast<std::size_t>(batch_rows[b])];
    batch.local.push_back(local_pages(pages_of(allocator, row, batch_rows[b], kv_lens[b]),
                                      mesh.page_rank(), mesh.kv_parallel()));
    batch.add(row, kv_lens[b], first_position(options.block_mask, b), q_len);
  }
  if (options.block_mask) {
    check_block_mask(static_cast<int>(page_size()), static_cast<int>(q.size(1)), batch.sizes,
                     *options.block_mask);
  }
  if (mesh.device().kind == DeviceKind::kCuda) check_repeated_rows(batch_rows, kv_lens);

  const StepOptions step = step_options(q, pool, options);
  check_attention(step.shape, attention_batch(batch.step));  // backends do not
  check_attend_inputs(step.shape, q.size(0), -1, q, pool);
  wait_for_peers();
  const auto kernels = backend->make_step(step, batch.entries);
  kernels->check(batch.sizes);
  const PlanHashes mine = hashes(options, batch, kv_lens, allocator);
  history.compare(mesh.world(), mine, [this] { check_replicas(allocator, mesh.world()); });
  history.add(mine);
  batch.step.set_digest(history.digest());
  kernels->plan(batch.step, options.stream);
  const Partial partials =
      kernels->needs_partial() ? partial(q.size(0), q.size(1), pool.v.size(3)) : Partial{};
  const AttendInput input{.q = q};
  kernels->check_attend(input, pool, partials, output);
  kernels->attend(input, pool, partials, output, options.stream);
  mesh.wait(options.stream, "forward");
}

}  // namespace kvmesh
