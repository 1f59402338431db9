// Copies pages, or their first tokens, within one plane of a layer: `Unit` bytes per thread.
//
// Constants of the kernel (namespace kvmesh): kUnitBytes, 16 where rows and their addresses are
// multiples of that; else the bytes of an element.
#pragma once

#include "kernels/cuda/pool/params.hpp"

namespace kvmesh::cuda {

template <class Unit>
__device__ inline void copy_page(const CopyPagesParams& params) {
  const LocalPageCopy copy = params.copies[blockIdx.x];
  const int units = params.row_bytes / static_cast<int>(sizeof(Unit));
  char* base = static_cast<char*>(params.data) + blockIdx.y * params.head_stride_bytes;
  const char* from = base + copy.source * params.page_stride_bytes;
  char* to = base + copy.destination * params.page_stride_bytes;
  for (int i = threadIdx.x; i < copy.tokens * units; i += blockDim.x) {
    const std::int64_t at =
        (i / units) * params.token_stride_bytes + (i % units) * static_cast<int>(sizeof(Unit));
    *reinterpret_cast<Unit*>(to + at) = *reinterpret_cast<const Unit*>(from + at);
  }
}

}  // namespace kvmesh::cuda

/// Grid: (copies, heads). Block: any.
extern "C" __global__ void kvmesh_copy_pages(
    const __grid_constant__ kvmesh::cuda::CopyPagesParams params) {
  using namespace kvmesh::cuda;
  if constexpr (kvmesh::kUnitBytes == 16) {
    copy_page<uint4>(params);
  } else if constexpr (kvmesh::kUnitBytes == 4) {
    copy_page<std::uint32_t>(params);
  } else if constexpr (kvmesh::kUnitBytes == 2) {
    copy_page<std::uint16_t>(params);
  } else {
    copy_page<std::uint8_t>(params);
  }
}
