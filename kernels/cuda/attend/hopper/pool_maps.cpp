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

/// Returns whether heads are whole atoms apart wherever pool_boxes says that they are whole rows or
/// 128 bytes apart: of dims below 257, only those of 160 are not.
bool has_whole_atoms(int dim, Dtype dtype) {
  return dim % KvImage{dim, static_cast<int>(size_bytes(dtype))}.atom_step() == 0;
}

/// REQUIRES: dims that it takes.
bool takes_order(const AttendCase& what) {
  if (what.kinds.pool_contiguous) return true;
  const AttentionShape& shape = what.shape;
  const bool takes_heads =
      shape.kv_heads == 1 || (!what.kinds.latent && has_whole_atoms(shape.k_dim, what.kinds.pool) &&
                              has_whole_atoms(shape.v_dim, what.kinds.pool));
  return what.kinds.pool_boxes && takes_heads;
}

bool copies_pool(const AttendCase& what) {
  return what.architecture == "sm_90a" && what.kinds.pool_vectors &&
         takes_dim(what.shape.k_dim, what.kinds, kMostLatentKey) &&
         takes_dim(what.shape.v_dim, what.kinds, kMostLatentValue) &&
         takes_page(what.shape.page_size) && takes_order(what);
}

/// Half of a pool, and the steps to its heads.
struct MappedHalf {
  TensorMap map;
  HeadSteps steps;
};

/// Half of a pool as [pages][page_size / 8][atoms][8][n], with n elements in a row of an atom, by
/// boxes of `box_dims` dims; rows of latent pages are longer than their values. Atoms go on from
/// head to head. Where they cannot, pages do: [pages * kv_heads].
MappedHalf map_of(const ConstTensorView& half, std::int64_t box_dims) {
  const std::int64_t page_size = half.size(2), dim = half.size(3), heads = half.size(1);
  const std::int64_t row = half.stride(2);
  const auto image_of = [&](std::int64_t dims) {
    return KvImage{static_cast<int>(dims), static_cast<int>(size_bytes(half.dtype))};
  };
  const KvImage image = image_of(dim), box = image_of(box_dims);
  const std::int64_t head = heads > 1 ? half.stride(1) : 0;
  const bool along_atoms = head % image.atom_step() == 0;
  const std::int64_t head_atoms = along_atoms ? head / image.atom_step() : 0;
  const std::int64_t first = half.size(0) * (along_atoms ? 1 : heads);
  const std::int64_t first_step = along_atoms ? half.stride(0) : head;
  const std::int64_t box_groups = std::min<std::int64_t>(page_size, kMostBoxTokens) / kAtomRows;
  const TensorMap map = make_tensor_map(
      half.dtype, half.data,
      {.extents = {image.atom_elements(), kAtomRows, (heads - 1) * head_atoms + image.atoms(),
                   page_size / kAtomRows, std::max<std::int64_t>(first, 1)},
       .strides = {1, row, image.atom_step(), kAtomRows * row,
                   first > 1 ? first_step : page_size * row},
       .box = {image.atom_elements(), kAtomRows, box.atoms(), box_groups, 1}});
  return {map,
          {.pages = static_cast<std::int32_t>(along_atoms ? 1 : heads),
           .heads = along_atoms ? 0 : 1,
           .atoms = static_cast<std::int32_t>(head_atoms)}};
}

HopperParams with_maps(const AttendParams& params, const ConstKvPool& pool, const MappedHalf& k,
                       const MappedHalf& v) {
  return {.k_map = k.map,
          .v_map = v.map,
          .attend = params,
          .scales = device_scales(pool),
          .k_steps = k.steps,
          .v_steps = v.steps};
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

bool gathers_for_many_rows(const AttendCase& what) {
  const auto takes = [](int dim) { return dim % 64 == 0 && dim >= 64 && dim <= 256; };
  return what.architecture == "sm_90a" && info_of(what.kinds.pool).bits == 16 &&
         what.kinds.pool_vectors && takes(what.shape.k_dim) && takes(what.shape.v_dim);
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
