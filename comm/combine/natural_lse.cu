#include "comm/combine/natural_lse.hpp"

#include "core/cuda/load_kernels.hpp"

namespace kvmesh::cuda {
namespace {

__global__ void make_natural(float* lse, std::int64_t token_stride, int heads, std::int64_t rows) {
  constexpr float kLn2 = 0.693147180559945309F;
  const std::int64_t row = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (row < rows) lse[row / heads * token_stride + row % heads] *= kLn2;
}

}  // namespace

cudaError_t load_natural_kernel() { return load_kernels(make_natural); }

cudaError_t launch_make_natural(float* lse, std::int64_t token_stride, std::int64_t tokens,
                                int heads, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const std::int64_t rows = tokens * heads;
  if (rows == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((rows + kThreads - 1) / kThreads);
  make_natural<<<blocks, kThreads, 0, stream>>>(lse, token_stride, heads, rows);
  return cudaGetLastError();
}

}  // namespace kvmesh::cuda
