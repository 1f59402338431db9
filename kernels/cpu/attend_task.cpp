#include "kernels/cpu/attend_task.hpp"

#include "core/numbers/highway_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attend_task.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// foreach_target.h must come before these.
#include <hwy/highway.h>

#include "kernels/cpu/attend_tile-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace kvmesh::cpu::HWY_NAMESPACE {

void attend_float32(const AttendInputs& inputs, const WorkTask& task, AttendScratch& scratch) {
  TaskRunner<float>(inputs, task, scratch).run();
}
void attend_float16(const AttendInputs& inputs, const WorkTask& task, AttendScratch& scratch) {
  TaskRunner<hwy::float16_t>(inputs, task, scratch).run();
}
void attend_bfloat16(const AttendInputs& inputs, const WorkTask& task, AttendScratch& scratch) {
  TaskRunner<hwy::bfloat16_t>(inputs, task, scratch).run();
}
void attend_float8(const AttendInputs& inputs, const WorkTask& task, AttendScratch& scratch) {
  TaskRunner<Float8>(inputs, task, scratch).run();
}

const char* target_name() { return hwy::TargetName(HWY_TARGET); }

}  // namespace kvmesh::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>

#include "core/numbers/softmax_merge.hpp"

namespace kvmesh::cpu {

HWY_EXPORT(attend_float32);
HWY_EXPORT(attend_float16);
HWY_EXPORT(attend_bfloat16);
HWY_EXPORT(attend_float8);
HWY_EXPORT(target_name);

AttendScratch::AttendScratch(const AttentionShape& shape, int max_rows,
                             const AttentionOptions& options)
    : q(padded(max_rows) * padded(shape.k_dim)),
      q_pairs(padded(max_rows) * static_cast<std::size_t>(shape.k_dim) / 2),
      scores(padded(max_rows) * kTileKeys),
      o(static_cast<std::size_t>(max_rows) * padded(shape.v_dim)),
      max(static_cast<std::size_t>(max_rows)),
      sum(static_cast<std::size_t>(max_rows)),
      k_rows(kTileKeys * padded(shape.k_dim)),
      v_rows(kTileKeys * padded(shape.v_dim)),
      score_mod(options.score.is_identity()
                    ? nullptr
                    : std::make_unique<ModEvaluator>(options.score.graph())),
      mask_mod(options.mask.is_identity() ? nullptr
                                          : std::make_unique<ModEvaluator>(options.mask.graph())) {}

std::int64_t AttendScratch::size_bytes() const {
  std::size_t floats = q_pairs.size();
  for (const auto* list : {&q, &scores, &o, &max, &sum, &k_rows, &v_rows}) floats += list->size();
  return static_cast<std::int64_t>(floats * sizeof(float));
}

void attend_task(const AttendInputs& inputs, const WorkTask& task, AttendScratch& scratch) {
  switch (inputs.pool.k.dtype) {
    case Dtype::kFloat32:
      return HWY_DYNAMIC_DISPATCH(attend_float32)(inputs, task, scratch);
    case Dtype::kFloat16:
      return HWY_DYNAMIC_DISPATCH(attend_float16)(inputs, task, scratch);
    case Dtype::kBFloat16:
      return HWY_DYNAMIC_DISPATCH(attend_bfloat16)(inputs, task, scratch);
    case Dtype::kFloat8E4M3:
      return HWY_DYNAMIC_DISPATCH(attend_float8)(inputs, task, scratch);
  }
}

namespace {

/// Fills `rows` with the rows of the workspace that are merged into row `row` of a block, those of
/// a shared prefix first.
void list_partials(const WorkBlocks& work, const WorkBlock& block, std::int64_t row, int group,
                   std::vector<std::int64_t>& rows) {
  rows.clear();
  const auto add = [&](const WorkBlock& from, std::int64_t at) {
    const std::int64_t step = (from.q_end - from.q_begin) * group;
    for (int s = 0; s < from.splits; ++s) rows.push_back(from.workspace_row + s * step + at);
  };
  if (block.shared_block >= 0) {
    const WorkBlock& shared = work.blocks[static_cast<std::size_t>(block.shared_block)];
    add(shared.of_head(block.kv_head, group), block.shared_row + row);
  }
  add(block, row);
}

}  // namespace

void merge_splits(const AttendInputs& inputs, const WorkBlock& block) {
  const int group = inputs.shape.q_heads / inputs.shape.kv_heads;
  const std::int64_t rows = (block.q_end - block.q_begin) * group;
  const std::int64_t dim = inputs.shape.v_dim;
  std::vector<std::int64_t> partials;
  std::vector<float> lses;
  for (std::int64_t row = 0; row < rows; ++row) {
    list_partials(*inputs.work, block, row, group, partials);
    lses.clear();
    for (const std::int64_t partial : partials) lses.push_back(inputs.workspace_lse[partial]);
    const std::int64_t token = block.q_begin + row / group;
    const std::int64_t head = block.kv_head * group + row % group;
    float merged = merged_lse(lses);
    if (inputs.sinks != nullptr && block.counts_sinks) {
      merged = lse_with_sink(merged, inputs.sinks[head]);
    }
    float* o = static_cast<float*>(inputs.out.o.data) + token * inputs.out.o.stride(0) +
               head * inputs.out.o.stride(1);
    std::fill_n(o, dim, 0.0f);
    for (std::size_t s = 0; s < partials.size(); ++s) {
      const float weight = merge_weight(lses[s], merged);
      const float* source = inputs.workspace_o + partials[s] * dim;
      for (std::int64_t i = 0; i < dim; ++i) o[i] += weight * source[i];
    }
    static_cast<float*>(
        inputs.out.lse.data)[token * inputs.out.lse.stride(0) + head * inputs.out.lse.stride(1)] =
        merged;
  }
}

}  // namespace kvmesh::cpu

std::string_view kvmesh::cpu_instruction_set() {
  using namespace cpu;
  return HWY_DYNAMIC_DISPATCH(target_name)();
}
#endif  // HWY_ONCE
