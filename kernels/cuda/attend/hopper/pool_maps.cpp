#include "kernels/cuda/attend/hopper/pool_maps.hpp"

#include <algorithm>

#include "kernels/cuda/attend/hopper/image.hpp"
#include "kernels/cuda/attend/hopper/make_tensor_map.hpp"
#include "kernels/cuda/attend/plain/plain_family.hpp"

namespace kvmesh::cuda {
namespace {

bool takes_dim(int dim, int most) { return dim % kAtomElements == 0 && dim <= most; }
bool takes_page(int tokens) {
  return tokens % kAtomRows == 0 && (kMostBoxTokens % tokens == 0 || tokens % kMostBoxTokens == 0);
}

/// Half of a pool as [pages * kv_heads][page_size / 8][dim / 64][8][64], or [..128][8][128]; rows
/// of latent pages are longer than their values.
TensorMap map_of(const ConstTensorView& half) {
  const std::int64_t page_size = half.size(2);
  const std::int64_t dim = half.size(3);
  const std::int64_t row = half.stride(2);
  const std::int64_t atom =
      KvImage{static_cast<int>(dim), static_cast<int>(size_bytes(half.dtype))}.atom_elements();
  const std::int64_t pages = std::max<std::int64_t>(half.size(0) * half.size(1), 1);
  const std::int64_t box_groups = std::min<std::int64_t>(page_size, kMostBoxTokens) / kAtomRows;
  return make_tensor_map(half.dtype, half.data,
                         {.extents = {atom, kAtomRows, dim / atom, page_size / kAtomRows, pages},
                          .strides = {1, row, atom, kAtomRows * row, page_size * row},
                          .box = {atom, kAtomRows, dim / atom, box_groups, 1}});
}

}  // namespace

bool takes_pool(const AttendCase& what) {
  return what.architecture == "sm_90a" && info_of(what.kinds.pool).bits <= 16 &&
         what.kinds.pool_vectors && what.kinds.pool_contiguous &&
         takes_dim(what.shape.k_dim, what.kinds.latent ? 576 : 256) &&
         takes_dim(what.shape.v_dim, what.kinds.latent ? 512 : 256) &&
         takes_page(what.shape.page_size);
}

HopperParams with_pool_maps(const AttendParams& params, const ConstKvPool& pool) {
  return {.k_map = map_of(pool.k),
          .v_map = map_of(pool.v),
          .attend = params,
          .scales = device_scales(pool),
          .pool_heads = static_cast<std::int32_t>(pool.k.size(1)),
          .no_page = static_cast<std::int32_t>(pool.k.size(0) * pool.k.size(1))};
}

}  // namespace kvmesh::cuda
