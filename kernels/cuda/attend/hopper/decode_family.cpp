#include "kernels/cuda/attend/hopper/decode_family.hpp"

#include <algorithm>

#include "kernels/cuda/attend/hopper/decode_params.hpp"
#include "kernels/cuda/attend/hopper/decode_tile.hpp"
#include "kernels/cuda/attend/hopper/make_tensor_map.hpp"

namespace kvmesh::cuda {
namespace {

/// Bytes of an SM that a thread block takes beside its own.
constexpr int kReservedBytes = 1024;
constexpr int kMostStages = 4;

bool takes_dim(int dim) { return dim % kAtomElements == 0 && dim <= 256; }
bool takes_page(int tokens) {
  return tokens % kAtomRows == 0 && (kTileKeys % tokens == 0 || tokens % kTileKeys == 0);
}

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
    const AttentionShape& shape = what.shape;
    const bool fits = what.architecture == "sm_90a" && what.rows <= 32 &&
                      what.group() <= what.rows && what.kinds.pool != Dtype::kFloat32 &&
                      what.kinds.pool_vectors && what.kinds.pool_contiguous &&
                      takes_dim(shape.k_dim) && takes_dim(shape.v_dim) &&
                      takes_page(shape.page_size);
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
    kernel.launch(
        how, DecodeParams{.k_map = map_of(pool.k),
                          .v_map = map_of(pool.v),
                          .attend = params,
                          .pool_heads = static_cast<std::int32_t>(pool.k.size(1)),
                          .no_page = static_cast<std::int32_t>(pool.k.size(0) * pool.k.size(1))});
  }

 private:
  /// Half of a pool as [pages * kv_heads][page_size / 8][dim / 64][8][64], which a box has a page
  /// of a head of; of a page larger than a tile, a tile.
  static TensorMap map_of(const ConstTensorView& half) {
    const std::int64_t page_size = half.size(2);
    const std::int64_t dim = half.size(3);
    const std::int64_t atoms = dim / kAtomElements;
    const std::int64_t box_groups = std::min<std::int64_t>(page_size, kTileKeys) / kAtomRows;
    return make_tensor_map(half.dtype, half.data,
                           {.extents = {kAtomElements, kAtomRows, atoms, page_size / kAtomRows,
                                        std::max<std::int64_t>(half.size(0) * half.size(1), 1)},
                            .strides = {1, dim, kAtomElements, kAtomRows * dim, page_size * dim},
                            .box = {kAtomElements, kAtomRows, atoms, box_groups, 1}});
  }
};

}  // namespace

const AttendFamily& decode_family() {
  static const DecodeFamily family;
  return family;
}

}  // namespace kvmesh::cuda
