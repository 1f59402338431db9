#include "core/cuda/load_kernels.hpp"
#include "kernels/cuda/pool/page_rows.hpp"

namespace kvmesh::cuda {
namespace {

// A thread keeps 4 loads of 16 bytes in flight, a multiprocessor with 2048 threads 128 KiB: five
// times what 4.8 TB/s over 132 multiprocessors need at a latency of 700 ns.
constexpr int kThreads = 256;
constexpr int kInFlight = 4;
/// The least that CUDA lets a grid have along y.
constexpr int kMostPlanes = 65535;
/// A thread block's, where planes have large pages: those of states.
constexpr std::int64_t kPartBytes = std::int64_t{64} << 10;
constexpr std::int64_t kMostParts = 64;

/// Rows of `width` bytes, each `*_pitch` bytes after the last.
struct Rectangle {
  char* to;
  const char* from;
  std::int64_t to_pitch, from_pitch;
  int width, rows;
};

template <class Unit>
__device__ void copy(const Rectangle& r) {
  const int units = r.width / static_cast<int>(sizeof(Unit));
  const int count = units * r.rows;
  const int parts = static_cast<int>(gridDim.z), part = static_cast<int>(blockIdx.z);
  for (int first = part * kInFlight * kThreads + static_cast<int>(threadIdx.x); first < count;
       first += parts * kInFlight * kThreads) {
    Unit held[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int i = first + j * kThreads;
      if (i >= count) break;
      held[j] = reinterpret_cast<const Unit*>(r.from + i / units * r.from_pitch)[i % units];
    }
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int i = first + j * kThreads;
      if (i >= count) break;
      reinterpret_cast<Unit*>(r.to + i / units * r.to_pitch)[i % units] = held[j];
    }
  }
}

/// The place of a move's rows at one end, and the distance from one head's rows to the next one's.
struct End {
  char* data;
  std::int64_t pitch;
};
__device__ End end_of(const PageRowsParams& p, const PlacedMove& placed, const MovedPlane& plane,
                      std::byte* pool, int page, int token) {
  if (pool == nullptr) {
    char* const packed = reinterpret_cast<char*>(p.packed) + placed.packed;
    const std::int64_t tokens = placed.move.tokens;
    return {packed + tokens * plane.before, tokens * plane.row_bytes};
  }
  const std::int64_t row = std::int64_t{page} * p.heads * p.page_size + token;
  return {reinterpret_cast<char*>(pool) + row * plane.row_bytes, p.page_size * plane.row_bytes};
}

/// A thread block moves a part of one page of one plane.
__global__ void __launch_bounds__(kThreads)
    page_rows(const __grid_constant__ PageRowsParams p, int first_plane) {
  const MovedPlane plane = p.planes[first_plane + static_cast<int>(blockIdx.y)];
  const PlacedMove placed = p.moves[blockIdx.x];
  const PageMove move = placed.move;
  const End from = end_of(p, placed, plane, plane.from, move.source, move.source_token);
  const End to = end_of(p, placed, plane, plane.to, move.destination, move.destination_token);
  Rectangle r{.to = to.data,
              .from = from.data,
              .to_pitch = to.pitch,
              .from_pitch = from.pitch,
              .width = static_cast<int>(move.tokens * plane.row_bytes),
              .rows = p.heads};
  if (to.pitch == r.width && from.pitch == r.width) {  // whole pages, or packed: one row
    r.width *= r.rows;
    r.rows = 1;
  }
  const std::int64_t all = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(r.to) |
                                                     reinterpret_cast<std::uintptr_t>(r.from)) |
                           to.pitch | from.pitch | r.width;
  if (all % 16 == 0) {
    copy<uint4>(r);
  } else if (all % 4 == 0) {
    copy<std::uint32_t>(r);
  } else {
    copy<unsigned char>(r);
  }
}

}  // namespace

cudaError_t load_page_kernel() { return load_kernels(page_rows); }

cudaError_t launch_page_rows(const PageRowsParams& params, cudaStream_t stream) {
  if (params.move_count == 0) return cudaSuccess;
  const std::int64_t parts = (params.largest_page + kPartBytes - 1) / kPartBytes;
  for (int first = 0; first < params.plane_count; first += kMostPlanes) {
    const int left = params.plane_count - first;
    const dim3 grid(static_cast<unsigned>(params.move_count),
                    static_cast<unsigned>(left < kMostPlanes ? left : kMostPlanes),
                    static_cast<unsigned>(parts < kMostParts ? parts : kMostParts));
    page_rows<<<grid, kThreads, 0, stream>>>(params, first);
  }
  return cudaGetLastError();
}

}  // namespace kvmesh::cuda
