#include "kernels/cuda/attend/mma/mma_family.hpp"

#include <algorithm>

#include "kernels/cuda/attend/mma/tile.hpp"

namespace kvmesh::cuda {
namespace {

/// Shared memory of an SM that a thread block takes beside its own.
constexpr int kReservedBytes = 1024;

bool is_power_of_two(int value) { return (value & (value - 1)) == 0; }

/// A tile, and how many thread blocks of it an SM holds at once.
struct FittedTile {
  AttendTile tile;
  int blocks = 1;
};

/// Returns the tile for a row class, with as many keys per step as leave room for `blocks` thread
/// blocks. Outputs take rows / warps * v_dim / 32 registers per thread: at most 128. With 128,
/// kernels that divide by a group or page size that is no power of two, or look up the classes of
/// heads, need the registers of half the scores.
AttendTile tile_of(const AttendCase& what) {
  const bool is_tight =
      what.head_classes || !is_power_of_two(what.group()) || !is_power_of_two(what.shape.page_size);
  switch (what.rows) {
    case 8:
    case 16:
      return {.row_tiles = 1, .row_warps = 1, .key_warps = 4, .step_keys = 16, .stages = 3};
    case 32:
      return {.row_tiles = 2, .row_warps = 1, .key_warps = 4, .step_keys = 16, .stages = 3};
    case 64:
      return {.row_tiles = 1, .row_warps = 4, .key_warps = 1, .step_keys = 64, .stages = 2};
    default:
      return {.row_tiles = 2,
              .row_warps = 4,
              .key_warps = 1,
              .step_keys = is_tight ? 32 : 64,
              .stages = 2};
  }
}

/// Small head dims leave registers for more thread blocks, which keep more copies under way.
int most_blocks(const AttendCase& what) {
  return what.rows <= 32 && std::max(what.shape.k_dim, what.shape.v_dim) <= 64 ? 3 : 2;
}

int blocks_that_fit(const AttendTile& tile, const AttendCase& what) {
  const int bytes = AttendShared{tile, what.shape.k_dim, what.shape.v_dim}.bytes();
  if (bytes > what.limits.block_bytes) return 0;
  return what.limits.multiprocessor_bytes / (bytes + kReservedBytes);
}

/// Reduces the keys per step, then the stages, until the wanted number of thread blocks fits an SM;
/// fewer blocks if that is not enough.
std::optional<FittedTile> fitted_tile(const AttendCase& what) {
  for (int blocks = most_blocks(what); blocks > 0; --blocks) {
    AttendTile tile = tile_of(what);
    for (;;) {
      if (blocks_that_fit(tile, what) >= blocks) return FittedTile{tile, blocks};
      if (tile.key_warps == 1 && tile.step_keys > 32) {
        tile.step_keys /= 2;
      } else if (tile.stages > 2) {
        --tile.stages;
      } else {
        break;
      }
    }
  }
  return std::nullopt;
}

class MmaFamily final : public AttendFamily {
 public:
  std::optional<AttendVariant> choose(const AttendCase& what) const override {
    const AttentionShape& shape = what.shape;
    const bool fits = info_of(what.kinds.pool).bits == 16 && what.kinds.pool_vectors &&
                      shape.k_dim % 8 == 0 && shape.v_dim % 8 == 0 && shape.k_dim <= 256 &&
                      shape.v_dim <= 256 && what.group() <= what.rows;
    if (!fits) return std::nullopt;
    const std::optional<FittedTile> fitted = fitted_tile(what);
    if (!fitted) return std::nullopt;
    const AttendTile& tile = fitted->tile;
    AttendVariant variant{.family = this,
                          .name = "mma",
                          .source = "kernels/cuda/attend/mma/attend.cuh",
                          .kernel = "kvmesh_attend",
                          .constants = attend_constants(what),
                          .threads = tile.threads(),
                          .shared_bytes = AttendShared{tile, shape.k_dim, shape.v_dim}.bytes(),
                          .blocks_per_multiprocessor = fitted->blocks,
                          .tile_keys = tile.tile_keys()};
    variant.constants.set("kQueryVectors", what.kinds.q_vectors)
        .set("kFoldScale", what.fold_scale)
        .set("kRowTiles", tile.row_tiles)
        .set("kRowWarps", tile.row_warps)
        .set("kKeyWarps", tile.key_warps)
        .set("kStepKeys", tile.step_keys)
        .set("kStages", tile.stages)
        .set("kBlocksPerSm", fitted->blocks)
        .set("kOverlaps", jit::can_overlap_launches(what.architecture));
    return variant;
  }
};

}  // namespace

const AttendFamily& mma_family() {
  static const MmaFamily family;
  return family;
}

}  // namespace kvmesh::cuda
