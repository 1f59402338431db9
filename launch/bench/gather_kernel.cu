#include "launch/bench/gather_kernel.hpp"

namespace kvmesh::bench {
namespace {

constexpr int kThreads = 256;
constexpr int kLoads = 8;  // in flight per thread: 32 KB per block
// 96 KB in flight per multiprocessor: at 700 ns that is 18 TB/s for 132 of them, four times the
// rate of the memory.
constexpr int kBlocksPerMultiprocessor = 3;

__device__ unsigned folded(const uint4& unit) { return unit.x ^ unit.y ^ unit.z ^ unit.w; }

/// Reads the keys, or the values, of one head. Threads take units in turn. Each advances to its
/// next unit by steps, since a division per 16 bytes would cost more than the read. Units past the
/// end look up the last page, so that no branch separates one look-up from the next.
__device__ unsigned read_plane(const GatherPlane& plane, const std::int32_t* pages, int tokens,
                               int heads, int head) {
  const int units = tokens * plane.token_units, page_units = plane.page_units;
  const int last_page = (units - 1) / page_units;
  const int step_pages = kThreads / page_units, step_units = kThreads % page_units;
  const auto thread = static_cast<int>(threadIdx.x);
  int page = thread / page_units, unit = thread % page_units;
  unsigned sum = 0;
  for (int first = thread; first < units; first += kThreads * kLoads) {
    std::int32_t places[kLoads];
    int units_of_pages[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      places[j] = __ldg(pages + min(page, last_page));
      units_of_pages[j] = unit;
      page += step_pages;
      unit += step_units;
      const bool over = unit >= page_units;
      unit -= over ? page_units : 0;
      page += over ? 1 : 0;
    }
    uint4 values[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const std::int64_t row = static_cast<std::int64_t>(places[j]) * heads + head;
      const uint4* from = plane.pool + row * page_units + units_of_pages[j];
      values[j] = first + j * kThreads < units ? __ldcs(from) : uint4{0, 0, 0, 0};
    }
#pragma unroll
    for (int j = 0; j < kLoads; ++j) sum ^= folded(values[j]);
  }
  return sum;
}

__device__ unsigned read_and_write_rows(const GatherParams& params) {
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  unsigned sum = 0;
  for (std::int64_t i = first; i < params.q_units; i += step) sum ^= folded(params.q[i]);
  for (const GatherRows& rows : params.out) {
    for (std::int64_t i = first; i < rows.units; i += step) rows.data[i] = uint4{0, 0, 0, 0};
  }
  return sum;
}

__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    gather(const __grid_constant__ GatherParams params) {
  __shared__ unsigned claimed, block_sum;
  if (threadIdx.x == 0) block_sum = 0;
  unsigned sum = read_and_write_rows(params);
  const auto pieces = static_cast<unsigned>(params.part_count * params.heads);
  unsigned piece = blockIdx.x;  // the first is fixed; the others are claimed
  while (piece < pieces) {
    unsigned next = 0;  // claimed early, so that it has arrived when it is needed
    if (threadIdx.x == 0) next = gridDim.x + atomicAdd(&params.counters[0], 1u);
    const GatherPart part = params.parts[piece / params.heads];
    const auto head = static_cast<int>(piece % params.heads);
#pragma unroll 1
    for (const GatherPlane& plane : params.planes) {
      if (plane.pool == nullptr) continue;
      sum ^= read_plane(plane, params.pages + part.first, part.tokens, params.heads, head);
    }
    __syncthreads();  // all threads have read the number of this piece
    if (threadIdx.x == 0) claimed = next;
    __syncthreads();
    piece = claimed;
  }
  __syncthreads();
  atomicXor(&block_sum, sum);
  __syncthreads();
  if (threadIdx.x != 0) return;
  atomicXor(params.sum, block_sum);
  __threadfence();
  // The last block resets the counters for the next launch.
  if (atomicAdd(&params.counters[1], 1u) + 1 == gridDim.x) {
    params.counters[0] = 0;
    params.counters[1] = 0;
  }
}

}  // namespace

void launch_gather(const GatherParams& params, int blocks, cudaStream_t stream) {
  gather<<<blocks, kThreads, 0, stream>>>(params);
}

}  // namespace kvmesh::bench
