#include "kernels/cuda/attend/common/family.hpp"

#include <cstdint>

#include "kernels/cuda/common/row_alignment.hpp"
#include "kernels/pool_checks.hpp"

namespace kvmesh::cuda {
namespace {

bool is_multiple(std::int64_t value, std::int64_t of) { return value % of == 0; }

bool is_contiguous(const ConstTensorView& view) {
  std::int64_t stride = 1;
  for (int dim = view.dims - 1; dim >= 0; --dim) {
    if (view.stride(dim) != stride) return false;
    stride *= view.size(dim);
  }
  return true;
}

/// The distance of pages does not matter if there is one, nor that of heads.
bool has_boxes(const ConstTensorView& half) {
  const auto bytes = static_cast<std::int64_t>(size_bytes(half.dtype));
  const bool has_heads = half.size(1) < 2 || is_multiple(half.stride(1), half.size(3)) ||
                         is_multiple(half.stride(1) * bytes, 128);
  return half.stride(3) == 1 && half.stride(2) > 0 && (half.size(0) < 2 || half.stride(0) > 0) &&
         has_heads;
}

int group_of(const AttentionShape& shape) { return shape.q_heads / shape.kv_heads; }

/// Most rows per thread block: outputs are in registers.
int largest_class(const AttentionShape& shape) { return shape.v_dim > 128 ? 64 : 128; }

bool has_row_scales(const BasicRowScale<ConstTensorView>& scale) {
  return !scale.per_token.empty() && !is_per_head(scale.per_token);
}

bool has_scale_vectors(const ConstTensorView& scales) {
  return reinterpret_cast<std::uintptr_t>(scales.data) % 16 == 0 && scales.data != nullptr &&
         is_multiple(scales.stride(0), 4) && is_multiple(scales.stride(1), 4) &&
         scales.stride(2) == 1;
}

}  // namespace

TensorKinds kinds_of(const ConstTensorView& q, const ConstKvPool& pool,
                     const ConstTensorView& sinks) {
  const ConstTensorView& k_scales = pool.k_scale.per_token;
  const ConstTensorView& v_scales = pool.v_scale.per_token;
  const bool row_scales = has_row_scales(pool.k_scale) || has_row_scales(pool.v_scale);
  // Kernels that copy boxes copy the scales of both halves, or of none.
  const bool has_copies = !row_scales || k_scales.empty() == v_scales.empty() || pool.is_latent();
  return {
      .q = q.dtype,
      .pool = pool.k.dtype,
      .q_vectors = begins_at_16_bytes(q),
      .pool_vectors = begins_at_16_bytes(pool.k) && begins_at_16_bytes(pool.v),
      .pool_contiguous =
          has_copies && is_contiguous(pool.k) && (pool.is_latent() || is_contiguous(pool.v)),
      .pool_boxes = has_copies && has_boxes(pool.k) && has_boxes(pool.v),
      .latent = pool.is_latent(),
      .row_scales = row_scales,
      .scale_vectors = !row_scales || (has_scale_vectors(k_scales) && has_scale_vectors(v_scales)),
      .has_sinks = !sinks.empty()};
}

void AttendFamily::launch(const jit::Kernel& kernel, const jit::Launch& how,
                          const AttendParams& params, const ConstKvPool& /*pool*/) const {
  kernel.launch(how, params);
}

AttentionShape planned_shape(const AttentionShape& shape) {
  const int group = group_of(shape), most = largest_class(shape);
  AttentionShape planned = shape;
  for (int blocks = 2; group > most && blocks * (most / 4) <= group; ++blocks) {
    if (group % blocks != 0 || group / blocks > most) continue;
    planned.kv_heads *= blocks;
    break;
  }
  return planned;
}

int AttendCase::group() const { return group_of(planned_shape(shape)); }

int row_class_of(std::int64_t rows, const AttentionShape& shape) {
  const int group = group_of(planned_shape(shape));
  const int largest = largest_class(shape);
  for (int row_class : kRowClasses) {
    // 32 rows per warp of mma take twice the registers for outputs; mma takes no larger dims.
    if (row_class == 32 && shape.v_dim > 128 && shape.v_dim <= 256) continue;
    if (row_class >= largest || (rows <= row_class && group <= row_class)) return row_class;
  }
  return largest;
}

jit::Constants attend_constants(const AttendCase& what) {
  jit::Constants constants;
  constants.set("kDimK", what.shape.k_dim)
      .set("kDimV", what.shape.v_dim)
      .set("kPageSize", what.shape.page_size)
      .set("kGroup", what.group())
      .set("kHeadBlocks", what.shape.q_heads / what.shape.kv_heads / what.group())
      .set("kHasHeadClasses", what.head_classes)
      .set("kHasSinks", what.kinds.has_sinks)
      .set("kHasRowTokens", what.row_tokens)
      .set("kPoolType", what.kinds.pool)
      .set("kQueryType", what.kinds.q);
  return constants;
}

}  // namespace kvmesh::cuda
