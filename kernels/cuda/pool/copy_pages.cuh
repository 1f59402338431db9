// Copies pages, or their first tokens, within a pool: 16 bytes a thread where all is aligned to
// that, else one element.
//
// Constants of the kernel (namespace kvmesh): kDimK, kDimV, kElementBytes, kVectors.
#pragma once

#include "kernels/cuda/pool/params.hpp"

namespace kvmesh::cuda {

template <class Unit>
__device__ inline void copy_rows(const WritablePool& pool, const LocalPageCopy& copy, int head,
                                 int row_bytes) {
  const int units = row_bytes / static_cast<int>(sizeof(Unit));
  char* base = static_cast<char*>(pool.data) + head * pool.head_stride * kElementBytes;
  for (int i = threadIdx.x; i < copy.tokens * units; i += blockDim.x) {
    const std::int64_t at = (i / units) * pool.token_stride * kElementBytes +
                            (i % units) * static_cast<std::int64_t>(sizeof(Unit));
    *reinterpret_cast<Unit*>(base + copy.destination * pool.page_stride * kElementBytes + at) =
        *reinterpret_cast<const Unit*>(base + copy.source * pool.page_stride * kElementBytes + at);
  }
}

template <class Unit>
__device__ inline void copy_page(const CopyPagesParams& params) {
  const LocalPageCopy copy = params.copies[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  copy_rows<Unit>(params.k_pool, copy, head, kDimK * kElementBytes);
  copy_rows<Unit>(params.v_pool, copy, head, kDimV * kElementBytes);
}

}  // namespace kvmesh::cuda

/// Grid: (copies, kv_heads). Block: any.
extern "C" __global__ void kvmesh_copy_pages(
    const __grid_constant__ kvmesh::cuda::CopyPagesParams params) {
  using namespace kvmesh::cuda;
  if constexpr (kvmesh::kVectors) {
    copy_page<uint4>(params);
  } else if constexpr (kvmesh::kElementBytes == 4) {
    copy_page<std::uint32_t>(params);
  } else {
    copy_page<std::uint16_t>(params);
  }
}
