#include "kernels/cuda/attend/hopper/latent/latent_family.hpp"

#include "kernels/cuda/attend/hopper/latent/latent_tile.hpp"
#include "kernels/cuda/attend/hopper/pool_maps.hpp"

namespace kvmesh::cuda {
namespace {

static_assert(kLatentKeys == kMostBoxTokens, "a box is a page, or a tile of a larger page");

class LatentFamily final : public AttendFamily {
 public:
  explicit LatentFamily(bool gathers) : gathers_(gathers) {}

  std::optional<AttendVariant> choose(const AttendCase& what) const override {
    const AttentionShape& shape = what.shape;
    // Outputs of 512 columns are what the registers of two teams hold; weights take the place of 64
    // elements of a key.
    const bool fits = what.kinds.latent && what.rows == kLatentRows &&
                      what.group() <= kLatentRows && shape.v_dim == 512 &&
                      shape.k_dim >= shape.v_dim + kLatentKeys &&
                      (gathers_ ? gathers_pool(what) : takes_pool(what));
    if (!fits) return std::nullopt;
    const LatentTile tile{.k_dim = shape.k_dim, .v_dim = shape.v_dim, .gathers = gathers_};
    if (tile.bytes() > what.limits.block_bytes) return std::nullopt;
    AttendVariant variant{.family = this,
                          .name = gathers_ ? "hopper latent gather" : "hopper latent",
                          .source = "kernels/cuda/attend/hopper/latent/latent.cuh",
                          .kernel = "kvmesh_attend_latent",
                          .constants = attend_constants(what),
                          .threads = kLatentThreads,
                          .shared_bytes = tile.bytes(),
                          .blocks_per_multiprocessor = 1,
                          .tile_keys = kLatentKeys,
                          .rule = {.one_piece_tiles = 128},
                          .overlaps = true};
    variant.constants.set("kQueryVectors", what.kinds.q_vectors)
        .set("kFoldScale", what.fold_scale)
        .set("kScaleVectors", what.kinds.scale_vectors)
        .set("kBoxTokens", kMostBoxTokens)
        .set("kGathers", gathers_);
    return variant;
  }

  void launch(const jit::Kernel& kernel, const jit::Launch& how, const AttendParams& params,
              const ConstKvPool& pool) const override {
    kernel.launch(how, gathers_ ? without_maps(params) : with_latent_maps(params, pool));
  }

 private:
  const bool gathers_;
};

}  // namespace

const AttendFamily& latent_family() {
  static const LatentFamily family(false);
  return family;
}

const AttendFamily& latent_gather_family() {
  static const LatentFamily family(true);
  return family;
}

}  // namespace kvmesh::cuda
