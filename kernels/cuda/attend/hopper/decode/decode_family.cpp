#include "kernels/cuda/attend/hopper/decode/decode_family.hpp"

#include "kernels/cuda/attend/hopper/decode/decode_tile.hpp"
#include "kernels/cuda/attend/hopper/pool_maps.hpp"

namespace kvmesh::cuda {
namespace {

/// Bytes of an SM that the system reserves per thread block.
constexpr int kReservedBytes = 1024;

/// A tile, and how many thread blocks of it an SM holds at once.
struct FittedTile {
  DecodeTile tile;
  int blocks = 1;
};

/// Returns whether the outputs leave enough registers: a thread has 128 with three thread blocks on
/// an SM, which suffice for few rows and dims, and 168 with two. Float8 keys and values also go
/// through registers.
bool has_registers(const FittedTile& fitted) {
  const DecodeTile& tile = fitted.tile;
  if (fitted.blocks < 3) return true;
  if (tile.element_bytes > 1) return tile.rows * tile.v_dim <= 32 * 64;
  return tile.rows < 32 && tile.rows * tile.v_dim <= 16 * 128;
}

bool fits(const FittedTile& fitted, const SharedLimits& limits) {
  const int bytes = fitted.tile.bytes();
  return has_registers(fitted) && bytes <= limits.block_bytes &&
         fitted.blocks * (bytes + kReservedBytes) <= limits.multiprocessor_bytes;
}

/// Returns the first tile that fits, with many thread blocks on an SM before few: many small queues
/// of copies share the memory's bandwidth more evenly than few deep ones. Each needs a tile under
/// way beside the one in use, and two where an SM has few thread blocks. Queries are copied a piece
/// ahead, unless that costs the third tile of a thread block that has an SM to itself.
std::optional<FittedTile> fitted_tile(const AttendCase& what, bool gathers) {
  struct Choice {
    int blocks, pieces, stages;
  };
  for (const Choice& choice : {Choice{3, 2, 4}, Choice{3, 2, 3}, Choice{3, 2, 2}, Choice{2, 2, 4},
                               Choice{2, 2, 3}, Choice{2, 2, 2}, Choice{1, 2, 4}, Choice{1, 2, 3},
                               Choice{1, 1, 3}, Choice{1, 2, 2}, Choice{1, 1, 2}}) {
    const FittedTile fitted{.tile = {.rows = what.rows,
                                     .k_dim = what.shape.k_dim,
                                     .v_dim = what.shape.v_dim,
                                     .stages = choice.stages,
                                     .pieces = choice.pieces,
                                     .latent = what.kinds.latent,
                                     .element_bytes = static_cast<int>(size_bytes(what.kinds.pool)),
                                     .row_scales = what.kinds.row_scales,
                                     .gathers = gathers},
                            .blocks = choice.blocks};
    if (fits(fitted, what.limits)) return fitted;
  }
  return std::nullopt;
}

static_assert(kTileKeys == kMostBoxTokens, "a box is a page, or a tile of a larger page");

/// Partials of 512 columns, and of more than 8 rows, are large: two pieces would balance better
/// than one, but cost more.
PieceRule piece_rule(const AttendCase& what) {
  if (what.kinds.latent) return {.one_piece_tiles = 128};
  if (what.rows > 8) return {.least_tiles = 12};
  return {};
}

class DecodeFamily final : public AttendFamily {
 public:
  explicit DecodeFamily(bool gathers) : gathers_(gathers) {}

  std::optional<AttendVariant> choose(const AttendCase& what) const override {
    const bool takes = what.rows <= 32 && what.group() <= what.rows &&
                       (gathers_ ? gathers_pool(what) : takes_pool(what));
    if (!takes) return std::nullopt;
    const std::optional<FittedTile> fitted = fitted_tile(what, gathers_);
    if (!fitted) return std::nullopt;
    const bool float8 = what.kinds.pool == Dtype::kFloat8E4M3;
    AttendVariant variant{.family = this,
                          .name = gathers_ ? "hopper decode gather"
                                  : float8 ? "hopper decode float8"
                                           : "hopper decode",
                          .source = float8 ? "kernels/cuda/attend/hopper/decode/decode_float8.cuh"
                                           : "kernels/cuda/attend/hopper/decode/decode.cuh",
                          .kernel = float8 ? "kvmesh_attend_decode_float8" : "kvmesh_attend_decode",
                          .constants = attend_constants(what),
                          .threads = fitted->tile.threads(),
                          .shared_bytes = fitted->tile.bytes(),
                          .blocks_per_multiprocessor = fitted->blocks,
                          .tile_keys = kTileKeys,
                          .rule = piece_rule(what),
                          .overlaps = true};
    variant.constants.set("kQueryVectors", what.kinds.q_vectors)
        .set("kFoldScale", what.fold_scale)
        .set("kRowScales", what.kinds.row_scales)
        .set("kScaleVectors", what.kinds.scale_vectors)
        .set("kRows", what.rows)
        .set("kStages", fitted->tile.stages)
        .set("kPieceRing", fitted->tile.pieces)
        .set("kBlocksPerSm", fitted->blocks)
        .set("kLatent", what.kinds.latent)
        .set("kGathers", gathers_);
    return variant;
  }

  void launch(const jit::Kernel& kernel, const jit::Launch& how, const AttendParams& params,
              const ConstKvPool& pool) const override {
    kernel.launch(how, gathers_ ? without_maps(params) : with_pool_maps(params, pool));
  }

 private:
  const bool gathers_;
};

}  // namespace

const AttendFamily& decode_family() {
  static const DecodeFamily family(false);
  return family;
}

const AttendFamily& decode_gather_family() {
  static const DecodeFamily family(true);
  return family;
}

}  // namespace kvmesh::cuda
