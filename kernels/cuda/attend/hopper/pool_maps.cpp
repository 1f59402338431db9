#include "kernels/cuda/attend/hopper/pool_maps.hpp"

#include <algorithm>
#include <bit>

#include "kernels/cuda/attend/hopper/instructions/image.hpp"
#include "kernels/cuda/attend/hopper/make_tensor_map.hpp"
#include "kernels/cuda/attend/plain/plain_family.hpp"

namespace kvmesh::cuda {
namespace {

constexpr int kMostLatentKey = 576, kMostLatentValue = 512;

bool takes_dim(int dim, const TensorKinds& kinds, int most_of_latent) {
  const bool halves = info_of(kinds.pool).bits == 16 && !kinds.latent;
  return dim % (halves ? 32 : 64) == 0 && dim >= 64 && dim <= (kinds.latent ? most_of_latent : 256);
}
bool takes_page(int tokens) {
  return tokens % kAtomRows == 0 && (kMostBoxTokens % tokens == 0 || tokens % kMostBoxTokens == 0);
}

bool copies_pool(const AttendCase& what) {
  return what.architecture == "sm_90a" && what.kinds.pool_vectors && what.kinds.pool_contiguous &&
         takes_dim(what.shape.k_dim, what.kinds, kMostLatentKey) &&
         takes_dim(what.shape.v_dim, what.kinds, kMostLatentValue) &&
         takes_page(what.shape.page_size);
}

/// Half of a pool as [pages * kv_heads][page_size / 8][atoms][8][n], with n elements in a row of an
/// atom, by boxes of `box_dims` dims; rows of latent pages are longer than their values.
TensorMap map_of(const ConstTensorView& half, std::int64_t box_dims) {
  const std::int64_t page_size = half.size(2), dim = half.size(3);
  const std::int64_t row = half.stride(2);
  const auto image_of = [&](std::int64_t dims) {
    return KvImage{static_cast<int>(dims), static_cast<int>(size_bytes(half.dtype))};
  };
  const KvImage image = image_of(dim), box = image_of(box_dims);
  const std::int64_t pages = std::max<std::int64_t>(half.size(0) * half.size(1), 1);
  const std::int64_t box_groups = std::min<std::int64_t>(page_size, kMostBoxTokens) / kAtomRows;
  return make_tensor_map(
      half.dtype, half.data,
      {.extents = {image.atom_elements(), kAtomRows, image.atoms(), page_size / kAtomRows, pages},
       .strides = {1, row, image.atom_step(), kAtomRows * row, page_size * row},
       .box = {image.atom_elements(), kAtomRows, box.atoms(), box_groups, 1}});
}

HopperParams with_maps(const AttendParams& params, const ConstKvPool& pool, const TensorMap& k_map,
                       const TensorMap& v_map) {
  return {.k_map = k_map,
          .v_map = v_map,
          .attend = params,
          .scales = device_scales(pool),
          .pool_heads = static_cast<std::int32_t>(pool.k.size(1)),
          .no_page = static_cast<std::int32_t>(pool.k.size(0) * pool.k.size(1))};
}

}  // namespace

bool takes_pool(const AttendCase& what) {
  const bool takes_format = info_of(what.kinds.pool).bits == 16 ||
                            (what.kinds.pool == Dtype::kFloat8E4M3 && !what.kinds.latent);
  return takes_format && copies_pool(what);
}

bool takes_latent_float8_pool(const AttendCase& what) {
  return what.kinds.pool == Dtype::kFloat8E4M3 && what.kinds.latent && copies_pool(what) &&
         what.shape.k_dim > what.shape.v_dim;
}

bool gathers_pool(const AttendCase& what) {
  constexpr int kMostOfMma = 256;
  return what.architecture == "sm_90a" && what.kinds.latent &&
         info_of(what.kinds.pool).bits == 16 && what.kinds.pool_vectors &&
         what.shape.k_dim > kMostOfMma && takes_dim(what.shape.k_dim, what.kinds, kMostLatentKey) &&
         takes_dim(what.shape.v_dim, what.kinds, kMostLatentValue) &&
         std::has_single_bit(static_cast<unsigned>(what.shape.page_size));
}

HopperParams with_pool_maps(const AttendParams& params, const ConstKvPool& pool) {
  return with_maps(params, pool, map_of(pool.k, pool.k.size(3)), map_of(pool.v, pool.v.size(3)));
}

HopperParams with_latent_maps(const AttendParams& params, const ConstKvPool& pool) {
  const std::int64_t left = pool.v.size(3) / 2, right = pool.k.size(3) - left;
  return with_maps(params, pool, map_of(pool.k, right), map_of(pool.k, left));
}

HopperParams with_latent_float8_maps(const AttendParams& params, const ConstKvPool& pool) {
  const std::int64_t values = pool.v.size(3);
  ConstTensorView rest = pool.k;
  rest.data = static_cast<const std::uint8_t*>(pool.k.data) + values;
  rest.shape[3] -= values;
  return with_maps(params, pool, map_of(rest, rest.size(3)), map_of(pool.v, values));
}

HopperParams without_maps(const AttendParams& params) {
  HopperParams made{};
  made.attend = params;
  return made;
}

}  // namespace kvmesh::cuda
