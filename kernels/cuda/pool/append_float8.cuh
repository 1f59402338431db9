// Writes new keys and values to float8 pages: a warp quantises a row of a token and head. If each
// row has a scale of its own, it finds the row's largest element first.
//
// Constants of the kernel (namespace kvmesh): kDimK, kDimV (0: latent pages), kNewType, kPerToken
// (each row has a scale, or each head a given one).
#pragma once

#include "core/cuda/device/dependent_launch.cuh"
#include "core/cuda/device/warp.cuh"
#include "core/pod/float8.hpp"
#include "kernels/cuda/common/elements.cuh"
#include "kernels/cuda/pool/params.hpp"

namespace kvmesh::cuda {

__device__ inline std::int64_t place(const WritablePool& plane, const TokenSlot& slot, int head) {
  return slot.page * plane.page_stride + head * plane.head_stride +
         slot.offset * plane.token_stride;
}

/// The scale by which no finite element of a row saturates, in all lanes.
template <int Dim>
__device__ inline float largest_scale(const NewRows& rows, std::int64_t from) {
  float largest = 0.0f;
  for (int d = threadIdx.x % 32; d < Dim; d += 32) {
    const float size = fabsf(load_element<kNewType>(rows.data, from + d));
    if (is_finite_size(size)) largest = fmaxf(largest, size);
  }
  return float8_scale(warp_max(largest));
}

template <int Dim>
__device__ inline void write_row(const WritablePool& pool, const WritableScale& scale,
                                 const NewRows& rows, const TokenSlot& slot, std::int64_t token,
                                 int head) {
  const int lane = threadIdx.x % 32;
  const std::int64_t from = token * rows.token_stride + head * rows.head_stride;
  float factor = scale.number;
  if constexpr (kPerToken) {
    float* const stored =
        static_cast<float*>(scale.per_token.data) + place(scale.per_token, slot, head);
    factor = scale.is_given ? *stored : largest_scale<Dim>(rows, from);
    if (lane == 0 && !scale.is_given) *stored = factor;
  }
  auto* to = static_cast<std::uint8_t*>(pool.data) + place(pool, slot, head);
  for (int d = lane; d < Dim; d += 32) {
    to[d] = float_to_float8(__fdiv_rn(load_element<kNewType>(rows.data, from + d), factor));
  }
}

}  // namespace kvmesh::cuda

/// Warps: tokens * kv_heads * (2, or 1 for latent pages), in any blocks.
extern "C" __global__ void kvmesh_append_float8(
    const __grid_constant__ kvmesh::cuda::AppendFloat8Params params) {
  using namespace kvmesh::cuda;
  griddepcontrol_wait();
  griddepcontrol_launch_dependents();
  constexpr int kRows = kvmesh::kDimV > 0 ? 2 : 1;
  const std::int64_t warp = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  const AppendParams& p = params.append;
  const int head = static_cast<int>(warp / kRows % p.kv_heads);
  const std::int64_t token = warp / kRows / p.kv_heads;
  if (token >= p.tokens) return;
  const kvmesh::TokenSlot slot = p.slots[token];
  if (slot.page < 0) return;
  if (warp % kRows == 0) {
    write_row<kvmesh::kDimK>(p.k_pool, params.k_scale, p.k, slot, token, head);
  } else {
    write_row<kvmesh::kDimV>(p.v_pool, params.v_scale, p.v, slot, token, head);
  }
}
