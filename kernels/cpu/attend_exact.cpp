#include "kernels/cpu/attend_exact.hpp"

#include "core/numbers/highway_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attend_exact.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// foreach_target.h must come before these.
#include <hwy/highway.h>

#include "kernels/cpu/attend_exact-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace kvmesh::cpu::HWY_NAMESPACE {

void attend_exact_float32(const ExactInputs& in, const WorkTask& task, AttendScratch& scratch) {
  ExactTaskRunner<float>(in, task, scratch).run();
}
void attend_exact_float16(const ExactInputs& in, const WorkTask& task, AttendScratch& scratch) {
  ExactTaskRunner<hwy::float16_t>(in, task, scratch).run();
}
void attend_exact_bfloat16(const ExactInputs& in, const WorkTask& task, AttendScratch& scratch) {
  ExactTaskRunner<hwy::bfloat16_t>(in, task, scratch).run();
}
void attend_exact_float8(const ExactInputs& in, const WorkTask& task, AttendScratch& scratch) {
  ExactTaskRunner<Float8>(in, task, scratch).run();
}

}  // namespace kvmesh::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace kvmesh::cpu {

HWY_EXPORT(attend_exact_float32);
HWY_EXPORT(attend_exact_float16);
HWY_EXPORT(attend_exact_bfloat16);
HWY_EXPORT(attend_exact_float8);

void attend_exact_task(const ExactInputs& inputs, const WorkTask& task, AttendScratch& scratch) {
  switch (inputs.attend.pool.k.dtype) {
    case Dtype::kFloat32:
      return HWY_DYNAMIC_DISPATCH(attend_exact_float32)(inputs, task, scratch);
    case Dtype::kFloat16:
      return HWY_DYNAMIC_DISPATCH(attend_exact_float16)(inputs, task, scratch);
    case Dtype::kBFloat16:
      return HWY_DYNAMIC_DISPATCH(attend_exact_bfloat16)(inputs, task, scratch);
    case Dtype::kFloat8E4M3:
      return HWY_DYNAMIC_DISPATCH(attend_exact_float8)(inputs, task, scratch);
  }
}

void merge_exact_splits(const ExactInputs& inputs, const WorkBlock& block) {
  const int q_heads = inputs.attend.shape.q_heads;
  const int group = q_heads / inputs.attend.shape.kv_heads;
  const std::int64_t rows = (block.q_end - block.q_begin) * group;
  const std::int64_t dim = inputs.out.dim();
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t token = block.q_begin + row / group;
    const ExactRow merged = inputs.out.row(token * q_heads + block.kv_head * group + row % group);
    clear_row(merged, dim);
    for (int s = 0; s < block.splits; ++s) {
      merge_row(merged, inputs.workspace.row(block.workspace_row + s * rows + row), dim);
    }
  }
}

}  // namespace kvmesh::cpu
#endif  // HWY_ONCE
