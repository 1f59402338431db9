#include "kernels/cuda/attend/hopper/prefill/prefill_family.hpp"

#include <algorithm>

#include "kernels/cuda/attend/hopper/pool_maps.hpp"
#include "kernels/cuda/attend/hopper/prefill/prefill_tile.hpp"

namespace kvmesh::cuda {
namespace {

bool is_float8(const AttendCase& what) { return what.kinds.pool == Dtype::kFloat8E4M3; }

/// Returns the tile. Queries are copied a piece ahead where shared memory has room for two pieces
/// of them, and outputs have at most 128 dims: consumers then run apart, which takes registers that
/// larger outputs need.
std::optional<PrefillTile> tile_of(const AttendCase& what, bool gathers) {
  PrefillTile tile{.consumers = what.rows / kConsumerRows,
                   .k_dim = what.shape.k_dim,
                   .v_dim = what.shape.v_dim,
                   .float8 = is_float8(what),
                   .row_scales = what.kinds.row_scales,
                   .gathers = gathers};
  for (tile.pieces = tile.v_dim > 128 ? 1 : 2; tile.pieces > 0; --tile.pieces) {
    if (tile.bytes() <= what.limits.block_bytes) return tile;
  }
  return std::nullopt;
}

/// Returns how many of the scores' products over float8 pages have queries in registers: four each,
/// of those that outputs, scores and weights leave. Mods, masks of each head and keys shorter than
/// values take more.
int register_steps(const PrefillTile& tile, const AttendCase& what) {
  if (!tile.float8) return 0;
  const bool is_simple = what.fold_scale && !what.head_classes && tile.k_dim >= tile.v_dim;
  const int most = is_simple ? 176 : 160;
  const int taken = tile.v_dim / 2 + tile.keys() / 2 + tile.keys() / 4;
  return std::clamp((most - taken) / 4, 0, tile.k_dim / 16);
}

class PrefillFamily final : public AttendFamily {
 public:
  explicit PrefillFamily(bool gathers) : gathers_(gathers) {}

  std::optional<AttendVariant> choose(const AttendCase& what) const override {
    const AttentionShape& shape = what.shape;
    // Registers do not suffice for masks of each head beside outputs of more than 128 dims, nor
    // over float8 pages for two consumers that have these.
    const bool has_registers =
        shape.v_dim <= 128 || !(what.head_classes || (is_float8(what) && what.rows == 128));
    const bool fits = (what.rows == 64 || what.rows == 128) && what.group() <= what.rows &&
                      shape.k_dim <= 256 && shape.v_dim <= 256 && has_registers && takes(what) &&
                      !(is_float8(what) && what.kinds.latent);
    if (!fits) return std::nullopt;
    const std::optional<PrefillTile> tile = tile_of(what, gathers_);
    if (!tile) return std::nullopt;
    AttendVariant variant{.family = this,
                          .name = gathers_       ? "hopper prefill gather"
                                  : tile->float8 ? "hopper prefill float8"
                                                 : "hopper prefill",
                          .source = "kernels/cuda/attend/hopper/prefill/prefill.cuh",
                          .kernel = "kvmesh_attend_prefill",
                          .constants = attend_constants(what),
                          .threads = tile->threads(),
                          .shared_bytes = tile->bytes(),
                          .blocks_per_multiprocessor = 1,
                          .tile_keys = tile->keys(),
                          .overlaps = true};
    variant.constants.set("kQueryVectors", what.kinds.q_vectors)
        .set("kFoldScale", what.fold_scale)
        .set("kConsumers", tile->consumers)
        .set("kPieceRing", tile->pieces)
        .set("kBoxTokens", kMostBoxTokens)
        .set("kRowScales", tile->row_scales)
        .set("kScaleVectors", what.kinds.scale_vectors)
        .set("kRegisterSteps", register_steps(*tile, what))
        .set("kGathers", gathers_);
    return variant;
  }

  void launch(const jit::Kernel& kernel, const jit::Launch& how, const AttendParams& params,
              const ConstKvPool& pool) const override {
    kernel.launch(how, gathers_ ? without_maps(params) : with_pool_maps(params, pool));
  }

 private:
  /// Boxes of 8 tokens come slower than the rows that warps gather.
  bool takes(const AttendCase& what) const {
    const bool gathers = gathers_for_many_rows(what);
    return gathers_ ? gathers : takes_pool(what) && !(gathers && what.shape.page_size == 8);
  }

  const bool gathers_;
};

}  // namespace

const AttendFamily& prefill_family() {
  static const PrefillFamily family(false);
  return family;
}

const AttendFamily& prefill_gather_family() {
  static const PrefillFamily family(true);
  return family;
}

}  // namespace kvmesh::cuda
