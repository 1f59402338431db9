#include "kernels/cuda/attend/exact/exact_family.hpp"

#include <algorithm>
#include <numeric>

#include "kernels/cuda/attend/exact/exact_tile.hpp"
#include "kernels/cuda/common/sources.hpp"
#include "kernels/exact_attention.hpp"

namespace kvmesh::cuda {
namespace {

/// Shared memory of an SM that a thread block takes beside its own.
constexpr int kReservedBytes = 1024;
/// Warps of an SM: each thread has up to 255 registers.
constexpr int kResidentWarps = 8;
/// A row is four times as large as one of the other families', so a longer share stays one piece.
constexpr int kExactPieceTiles = 128;

ExactTile tile_of(const AttendCase& what) {
  const int columns = (padded_dim(what.shape.v_dim) + kExactWarpColumns - 1) / kExactWarpColumns;
  const int row_warps = std::clamp(what.rows / kExactWarpRows, 1, kResidentWarps / columns);
  ExactTile tile{.row_warps = row_warps,
                 .column_warps = columns,
                 .chunk_keys = std::gcd(what.shape.page_size, 16)};
  if (tile.sharing_warps() > 1) {
    tile.key_warps = 1;
    tile.step_keys = std::min(16 * tile.sharing_warps(), 64);
  }
  return tile;
}

int bytes_of(const ExactTile& tile, const AttentionShape& shape) {
  return ExactShared{tile, shape.k_dim, shape.v_dim}.bytes();
}

/// Reduces the keys per step, then the stages, until an SM has room for all of its warps; else for
/// as many as fit. Returns how many thread blocks these are.
int fit(ExactTile& tile, const AttendCase& what) {
  const ExactTile whole = tile;
  for (int blocks = 32 * kResidentWarps / tile.threads(); blocks > 0; --blocks) {
    for (tile = whole;;) {
      const int bytes = bytes_of(tile, what.shape);
      if (bytes <= what.limits.block_bytes &&
          blocks * (bytes + kReservedBytes) <= what.limits.multiprocessor_bytes) {
        return blocks;
      }
      if (tile.step_keys > 16) {
        tile.step_keys /= 2;
      } else if (tile.stages > 2) {
        --tile.stages;
      } else {
        break;
      }
    }
  }
  return 0;
}

class ExactFamily final : public AttendFamily {
 public:
  std::optional<AttendVariant> choose(const AttendCase& what) const override {
    const AttentionShape& shape = what.shape;
    if (!gpu_has_exact_attention(what.kinds.pool, shape.k_dim, shape.v_dim) ||
        !what.kinds.pool_vectors || what.row_tokens) {
      return std::nullopt;
    }
    ExactTile tile = tile_of(what);
    const int blocks = fit(tile, what);
    if (blocks == 0) return std::nullopt;
    AttendCase without_sinks = what;  // the merge counts them
    without_sinks.kinds.has_sinks = false;
    AttendVariant variant{.family = this,
                          .name = "exact",
                          .source = "kernels/cuda/attend/exact/attend.cuh",
                          .kernel = "kvmesh_attend_exact",
                          .constants = attend_constants(without_sinks),
                          .threads = tile.threads(),
                          .shared_bytes = bytes_of(tile, shape),
                          .blocks_per_multiprocessor = blocks,
                          .tile_keys = tile.tile_keys(),
                          .rule = {.one_piece_tiles = kExactPieceTiles}};
    variant.constants.set("kQueryVectors", what.kinds.q_vectors)
        .set("kRowWarps", tile.sharing_warps())
        .set("kColumnWarps", tile.column_warps)
        .set("kKeyWarps", tile.key_warps)
        .set("kStepKeys", tile.step_keys)
        .set("kStages", tile.stages)
        .set("kChunkKeys", tile.chunk_keys)
        .set("kBlocksPerSm", blocks)
        .set("kOverlaps", jit::can_overlap_launches(what.architecture));
    return variant;
  }
};

}  // namespace

const AttendFamily& exact_family() {
  static const ExactFamily family;
  return family;
}

jit::Program exact_merge_program(int v_dim, const std::string& architecture) {
  jit::Program program{.files = cuda_kernel_sources(),
                       .source = "kernels/cuda/attend/exact/merge.cuh",
                       .architecture = architecture};
  program.constants.set("kDimV", v_dim).set("kOverlaps", jit::can_overlap_launches(architecture));
  return program;
}

}  // namespace kvmesh::cuda
