// A lane of a producer warp copies a page by these: its box, and scales of its keys.
#pragma once

#include "kernels/cuda/attend/common/rows.cuh"
#include "kernels/cuda/attend/hopper/hopper_params.hpp"
#include "kernels/cuda/attend/hopper/instructions/tma.cuh"
#include "kernels/cuda/common/ptx.cuh"

namespace kvmesh::cuda {

/// The indices of a box in a map of pool_maps.cpp.
struct PageBox {
  int atom;
  int group;
  int page;
};

/// Returns the box of `page` from its 8 rows `group` on. The box of a negative page lies outside of
/// the map, where the copy engine reads 0.
__device__ inline PageBox page_box(const HeadSteps& steps, const DeviceTask& task, int page,
                                   int group) {
  const int head = pool_head(task);
  return {head * steps.atoms, group, page < 0 ? -1 : page * steps.pages + head * steps.heads};
}

__device__ inline void copy_box(std::uint32_t to, const TensorMap& map, std::uint32_t barrier,
                                std::uint64_t policy, const PageBox& box) {
  cp_async_bulk_tensor_5d(to, map, barrier, policy, 0, 0, box.atom, box.group, box.page);
}

__device__ inline void prefetch_box(const TensorMap& map, const PageBox& box) {
  prefetch_tensor_5d(map, 0, 0, box.atom, box.group, box.page);
}

/// Starts the copies of the scales of four keys, the first of which is number `token` of its page.
/// Scales of a negative page are 0.
__device__ inline void copy_scales(float* to, const DeviceScale& scale, const DeviceTask& task,
                                   int page, int token) {
  const float* from =
      scale.per_token + max(page, 0) * scale.page_stride + pool_head(task) * scale.head_stride;
  std::uint32_t at = shared_address(to);
  if constexpr (kScaleVectors) {
    cp_async_16_zfill_alone(at, from + token, page < 0 ? 0 : 16);
  } else {
    from += token * scale.token_stride;
#pragma unroll 1  // producers have few registers
    for (const std::uint32_t end = at + 16; at < end; at += 4) {
      cp_async_4_zfill(at, from, page < 0 ? 0 : 4);
      from += scale.token_stride;
    }
  }
}

}  // namespace kvmesh::cuda
