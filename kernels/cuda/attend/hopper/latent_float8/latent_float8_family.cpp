#include "kernels/cuda/attend/hopper/latent_float8/latent_float8_family.hpp"

#include "kernels/cuda/attend/hopper/latent_float8/latent_float8_tile.hpp"
#include "kernels/cuda/attend/hopper/pool_maps.hpp"

namespace kvmesh::cuda {
namespace {

static_assert(kTeamKeys == kMostBoxTokens, "a box is a page, or a team's keys of a larger page");

/// Bytes of an SM that the system reserves per thread block.
constexpr int kReservedBytes = 1024;
/// Partials of 512 columns are large: a share of this many keys stays one piece, although two would
/// balance better.
constexpr int kOnePieceKeys = 8192;

/// Blocks of 64 dims of a team's outputs: one, or as many as begin where an atom of values does.
bool divides_dims(const AttentionShape& shape, int teams) {
  const int dims = shape.v_dim / teams;
  return shape.v_dim % (64 * teams) == 0 && (dims == 64 || dims % 128 == 0);
}

class LatentFloat8Family final : public AttendFamily {
 public:
  std::optional<AttendVariant> choose(const AttendCase& what) const override {
    const AttentionShape& shape = what.shape;
    const bool takes =
        takes_latent_float8_pool(what) && what.rows <= 64 && what.group() <= what.rows;
    if (!takes) return std::nullopt;
    const LatentFloat8Tile tile{.rows = what.rows,
                                .k_dim = shape.k_dim,
                                .v_dim = shape.v_dim,
                                .teams = what.rows > 16 ? 2 : 1,
                                .row_scales = what.kinds.row_scales};
    const int blocks = tile.teams == 1 ? 2 : 1;
    const bool fits = divides_dims(shape, tile.teams) && tile.rest_has_room() &&
                      tile.bytes() <= what.limits.block_bytes &&
                      blocks * (tile.bytes() + kReservedBytes) <= what.limits.multiprocessor_bytes;
    if (!fits) return std::nullopt;
    AttendVariant variant{.family = this,
                          .name = "hopper latent float8",
                          .source = "kernels/cuda/attend/hopper/latent_float8/latent_float8.cuh",
                          .kernel = "kvmesh_attend_latent_float8",
                          .constants = attend_constants(what),
                          .threads = tile.threads(),
                          .shared_bytes = tile.bytes(),
                          .blocks_per_multiprocessor = blocks,
                          .tile_keys = tile.keys(),
                          .rule = {.one_piece_tiles = kOnePieceKeys / tile.keys()},
                          .overlaps = true};
    variant.constants.set("kQueryVectors", what.kinds.q_vectors)
        .set("kFoldScale", what.fold_scale)
        .set("kRowScales", what.kinds.row_scales)
        .set("kScaleVectors", what.kinds.scale_vectors)
        .set("kRows", what.rows)
        .set("kTeams", tile.teams)
        .set("kBlocksPerSm", blocks)
        .set("kBoxTokens", kMostBoxTokens);
    return variant;
  }

  void launch(const jit::Kernel& kernel, const jit::Launch& how, const AttendParams& params,
              const ConstKvPool& pool) const override {
    kernel.launch(how, with_latent_float8_maps(params, pool));
  }
};

}  // namespace

const AttendFamily& latent_float8_family() {
  static const LatentFloat8Family family;
  return family;
}

}  // namespace kvmesh::cuda
