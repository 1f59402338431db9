#include "kernels/cuda/attend/variant.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "core/check.hpp"
#include "kernels/cuda/common/sources.hpp"

namespace kvmesh::cuda {
namespace {

bool is_multiple(std::int64_t value, std::int64_t of) { return value % of == 0; }

/// The tile for a row class, with as many keys a step as leave room for `blocks` thread blocks.
/// Outputs take rows / warps * v_dim / 32 registers a thread: 128 at most.
AttendTile tile_of(int row_class) {
  switch (row_class) {
    case 16:
      return {.row_tiles = 1, .row_warps = 1, .key_warps = 4, .step_keys = 16, .stages = 3};
    case 32:
      return {.row_tiles = 2, .row_warps = 1, .key_warps = 4, .step_keys = 16, .stages = 3};
    case 64:
      return {.row_tiles = 1, .row_warps = 4, .key_warps = 1, .step_keys = 64, .stages = 2};
    default:
      return {.row_tiles = 2, .row_warps = 4, .key_warps = 1, .step_keys = 64, .stages = 2};
  }
}

/// Bytes of an SM that a thread block takes beside its own.
constexpr int kReservedBytes = 1024;

int blocks_that_fit(const AttendVariant& variant, const SharedLimits& limits) {
  const int bytes = variant.shared_bytes();
  if (bytes > limits.block_bytes) return 0;
  return std::min(2, limits.multiprocessor_bytes / (bytes + kReservedBytes));
}

/// Gives up keys of a step, then stages, until two thread blocks fit an SM; one where that is all.
void fit(AttendVariant& variant, const SharedLimits& limits) {
  const AttendTile whole = variant.tile;
  for (int blocks : {2, 1}) {
    variant.tile = whole;
    variant.blocks_per_multiprocessor = blocks;
    for (;;) {
      if (blocks_that_fit(variant, limits) >= blocks) return;
      if (variant.tile.key_warps == 1 && variant.tile.step_keys > 32) {
        variant.tile.step_keys /= 2;
      } else if (variant.tile.stages > 2) {
        --variant.tile.stages;
      } else {
        break;
      }
    }
  }
  variant.tensor_cores = false;
}

}  // namespace

bool begins_at_16_bytes(const ConstTensorView& view) {
  const auto unit = static_cast<std::int64_t>(16 / size_bytes(view.dtype));
  bool aligned = reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0;
  for (int dim = 0; dim + 1 < view.dims; ++dim) aligned &= is_multiple(view.stride(dim), unit);
  return aligned;
}

TensorKinds kinds_of(const ConstTensorView& q, const ConstKvPool& pool) {
  return {.q = q.dtype,
          .pool = pool.k.dtype,
          .q_vectors = begins_at_16_bytes(q),
          .pool_vectors = begins_at_16_bytes(pool.k) && begins_at_16_bytes(pool.v)};
}

int row_class_of(std::int64_t rows, const AttentionShape& shape) {
  const int group = shape.q_heads / shape.kv_heads;
  const int largest = shape.v_dim > 128 ? 64 : 128;
  for (int row_class : kRowClasses) {
    // 32 rows a warp take twice the registers for outputs.
    if (row_class == 32 && shape.v_dim > 128) continue;
    if (row_class >= largest || (rows <= row_class && group <= row_class)) return row_class;
  }
  return largest;
}

AttendVariant choose_attend(const AttentionShape& shape, const TensorKinds& kinds, bool fold_scale,
                            int row_class, const SharedLimits& limits) {
  require(shape.page_size > 0, "attend: pages of {} tokens", shape.page_size);
  AttendVariant variant{.shape = shape, .kinds = kinds, .fold_scale = fold_scale};
  variant.tile = tile_of(row_class);
  const int group = shape.q_heads / shape.kv_heads;
  variant.tensor_cores = kinds.pool != Dtype::kFloat32 && kinds.pool_vectors &&
                         is_multiple(shape.k_dim, 8) && is_multiple(shape.v_dim, 8) &&
                         shape.k_dim <= 256 && shape.v_dim <= 256 && group <= row_class;
  if (variant.tensor_cores) fit(variant, limits);
  return variant;
}

jit::Program attend_program(const AttendVariant& variant, const CudaMods& mods,
                            const std::string& architecture) {
  jit::Program program{.files = cuda_kernel_sources(),
                       .source = variant.tensor_cores ? "kernels/cuda/attend/mma/attend.cuh"
                                                      : "kernels/cuda/attend/plain/attend.cuh",
                       .mods = mods.text,
                       .architecture = architecture};
  const AttentionShape& shape = variant.shape;
  program.constants.set("kDimK", shape.k_dim)
      .set("kDimV", shape.v_dim)
      .set("kPageSize", shape.page_size)
      .set("kGroup", shape.q_heads / shape.kv_heads)
      .set("kHasHeadClasses", variant.head_classes)
      .set("kPoolType", static_cast<int>(variant.kinds.pool))
      .set("kQueryType", static_cast<int>(variant.kinds.q));
  if (!variant.tensor_cores) return program;
  program.constants.set("kQueryVectors", variant.kinds.q_vectors)
      .set("kFoldScale", variant.fold_scale)
      .set("kRowTiles", variant.tile.row_tiles)
      .set("kRowWarps", variant.tile.row_warps)
      .set("kKeyWarps", variant.tile.key_warps)
      .set("kStepKeys", variant.tile.step_keys)
      .set("kStages", variant.tile.stages)
      .set("kBlocksPerSm", variant.blocks_per_multiprocessor)
      .set("kOverlaps", can_overlap_launches(architecture));
  return program;
}

bool can_overlap_launches(const std::string& architecture) {
  return std::atoi(architecture.c_str() + std::strlen("sm_")) >= 90;
}

jit::Program merge_program(const std::string& architecture) {
  jit::Program program{.files = cuda_kernel_sources(),
                       .source = "kernels/cuda/attend/common/merge.cuh",
                       .architecture = architecture};
  program.constants.set("kOverlaps", can_overlap_launches(architecture));
  return program;
}

}  // namespace kvmesh::cuda
