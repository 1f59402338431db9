#include "kernels/cuda/attend/hopper/decode_family.hpp"

#include "kernels/cuda/attend/hopper/decode_tile.hpp"
#include "kernels/cuda/attend/hopper/pool_maps.hpp"

namespace kvmesh::cuda {
namespace {

/// Bytes of an SM that a thread block takes beside its own.
constexpr int kReservedBytes = 1024;
constexpr int kMostStages = 4;

/// A tile, and how many thread blocks of it an SM holds at once.
struct Cut {
  DecodeTile tile;
  int blocks = 1;
};

/// As many thread blocks as leave each two stages: many small queues of copies share the memory's
/// bandwidth more evenly than few deep ones.
std::optional<Cut> cut_of(const AttendCase& what) {
  Cut cut{.tile = {.rows = what.rows, .k_dim = what.shape.k_dim, .v_dim = what.shape.v_dim}};
  for (cut.blocks = 3; cut.blocks > 0; --cut.blocks) {
    for (cut.tile.stages = kMostStages; cut.tile.stages >= 2; --cut.tile.stages) {
      const int bytes = cut.tile.bytes();
      if (bytes <= what.limits.block_bytes &&
          cut.blocks * (bytes + kReservedBytes) <= what.limits.multiprocessor_bytes) {
        return cut;
      }
    }
  }
  return std::nullopt;
}

class DecodeFamily final : public AttendFamily {
 public:
  std::optional<AttendVariant> choose(const AttendCase& what) const override {
    const bool fits = what.rows <= 32 && what.group() <= what.rows && takes_pool(what);
    if (!fits) return std::nullopt;
    const std::optional<Cut> cut = cut_of(what);
    if (!cut) return std::nullopt;
    AttendVariant variant{.family = this,
                          .name = "hopper decode",
                          .source = "kernels/cuda/attend/hopper/decode.cuh",
                          .kernel = "kvmesh_attend_decode",
                          .constants = attend_constants(what),
                          .threads = kDecodeThreads,
                          .shared_bytes = cut->tile.bytes(),
                          .blocks_per_multiprocessor = cut->blocks,
                          .tile_keys = kTileKeys,
                          .overlaps = true};
    variant.constants.set("kQueryVectors", what.kinds.q_vectors)
        .set("kFoldScale", what.fold_scale)
        .set("kRows", what.rows)
        .set("kStages", cut->tile.stages)
        .set("kBlocksPerSm", cut->blocks);
    return variant;
  }

  void launch(const jit::Kernel& kernel, const jit::Launch& how, const AttendParams& params,
              const ConstKvPool& pool) const override {
    kernel.launch(how, with_pool_maps(params, pool));
  }
};

}  // namespace

const AttendFamily& decode_family() {
  static const DecodeFamily family;
  return family;
}

}  // namespace kvmesh::cuda
