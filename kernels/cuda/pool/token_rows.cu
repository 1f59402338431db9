#include "core/cuda/load_kernels.hpp"
#include "kernels/cuda/pool/token_rows.hpp"

namespace kvmesh::cuda {
namespace {

constexpr int kThreads = 128;  // heads of 256 bytes: 8 of them are 128 units of 16 bytes
/// The least that CUDA lets a grid have along y.
constexpr int kMostPlanes = 65535;

template <class Unit>
__device__ void copy_rows(const TokenRowsParams& p, const PlaneRows& plane, const TokenSlot& slot) {
  const int units_of_row = plane.row_bytes / static_cast<int>(sizeof(Unit));
  char* const page = plane.data + slot.page * plane.page_stride + slot.offset * plane.token_stride;
  auto* const packed =
      reinterpret_cast<Unit*>(p.packed + blockIdx.x * p.token_bytes + plane.packed);
  for (int i = static_cast<int>(threadIdx.x); i < p.heads * units_of_row; i += kThreads) {
    auto* const row = reinterpret_cast<Unit*>(page + i / units_of_row * plane.head_stride);
    Unit& in_page = row[i % units_of_row];
    if (p.is_packing) {
      packed[i] = in_page;
    } else {
      in_page = packed[i];
    }
  }
}

/// A thread block copies one token of one plane.
__global__ void __launch_bounds__(kThreads)
    token_rows(const __grid_constant__ TokenRowsParams p, int first_plane) {
  const PlaneRows plane = p.planes[first_plane + static_cast<int>(blockIdx.y)];
  const TokenSlot slot = p.slots[blockIdx.x];
  if (plane.unit_bytes == 16) {
    copy_rows<uint4>(p, plane, slot);
  } else if (plane.unit_bytes == 4) {
    copy_rows<std::uint32_t>(p, plane, slot);
  } else {
    copy_rows<unsigned char>(p, plane, slot);
  }
}

}  // namespace

cudaError_t load_token_kernel() { return load_kernels(token_rows); }

cudaError_t launch_token_rows(const TokenRowsParams& params, cudaStream_t stream) {
  if (params.tokens == 0) return cudaSuccess;
  for (int first = 0; first < params.plane_count; first += kMostPlanes) {
    const int left = params.plane_count - first;
    const dim3 grid(static_cast<unsigned>(params.tokens),
                    static_cast<unsigned>(left < kMostPlanes ? left : kMostPlanes));
    token_rows<<<grid, kThreads, 0, stream>>>(params, first);
  }
  return cudaGetLastError();
}

}  // namespace kvmesh::cuda
