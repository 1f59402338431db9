// Rows of pages that the copy engine cannot bring: a box of it has at least 8 neighbouring rows,
// and a page of a token list has one. Warps copy them 16 bytes per lane into the same image.
//
//   lane    unit lane % 8 of an atom, in row lane / 8 of four: an instruction reads four lines of
//           128 bytes, and writes each to all banks
//   warp    a quarter of a tile's rows: lane i has the visit of the i-th
//
// A key of 576 elements is 9 atoms. A warp thus has 36 copies per tile, and finds a row for every
// nine of them.
#pragma once

#include "core/cuda/device/warp.cuh"
#include "kernels/cuda/attend/common/rows.cuh"
#include "kernels/cuda/attend/hopper/gather_warps.hpp"
#include "kernels/cuda/attend/hopper/instructions/image.hpp"
#include "kernels/cuda/attend/hopper/instructions/mbarrier.cuh"
#include "kernels/cuda/attend/hopper/instructions/tma.cuh"

namespace kvmesh::cuda {

/// One of the warps that gather the rows of a tile. `Shared` is a kernel's SharedRings.
template <class Shared, int TileKeys>
class RowGather {
 public:
  __device__ RowGather(const Shared& shared, int warp) : shared_(shared), warp_(warp) {}

  /// Writes the visits of the warp's rows. REQUIRES: the stage's former visits are no longer read.
  __device__ void put_visits(int stage, const PageVisit& visit) const {
    if (lane() < kRows) shared_.visits(stage)[warp_ * kRows + lane()] = visit;
    const bool masked = __any_sync(kAllLanes, visit.masked != 0);
    static_assert(kGatherWarps == sizeof(int));  // each has a byte of the number
    if (lane() == 0) reinterpret_cast<char*>(&shared_.masked(stage))[warp_] = masked;
  }

  /// Starts the copies of elements `Begin` .. of the warp's rows of `half` of the pool, as many as
  /// `Image` has, to an image at shared address `to`. Rows without a page are 0. `first_key` is
  /// that of the tile.
  template <KvImage Image, int Begin = 0>
  __device__ void copy(const DevicePool& half, const DeviceTask& task, int first_key,
                       const PageVisit& visit, std::uint32_t to) const {
    static_assert(!kGathers || Image.dim % 64 == 0);
    // Each lane finds the place of one row, and others get it from there: math warps need the
    // instructions that finding it eight times would take. The last bit marks rows without a page.
    const auto mine = reinterpret_cast<std::uint64_t>(
                          place_of(half, task, visit.page, first_key + warp_ * kRows + lane())) |
                      (visit.page < 0 ? 1 : 0);
    const unsigned first = lane() / 8u, unit = lane() % 8u;
#pragma unroll(kRows == 32 ? 8 : 1)  // the latent kernels have registers for one
    for (unsigned i = 0; i < kRows; i += 4) {
      const std::uint64_t place = __shfl_sync(kAllLanes, mine, first + i);
      // Opaque, so that the atoms' addresses are this one and a constant.
      const char* from =
          opaque(reinterpret_cast<const char*>(place & ~1ull) + Begin * 2 + unit * 16);
      const unsigned in_group = first + i % kAtomRows;
      const std::uint32_t at = to + Image.bytes(warp_ * kRows) +
                               i / kAtomRows * Image.group_bytes() + Image.unit(in_group, unit);
      const int bytes = place & 1 ? 0 : 16;
#pragma unroll
      for (int atom = 0; atom < Image.atoms(); ++atom) {
        cp_async_16_zfill(at + atom * Image.atom_bytes(), from + atom * kLongRowBytes, bytes);
      }
    }
  }

  /// Arrives at a barrier of kGatherArrivals: at once for what was written, and when they are there
  /// for the copies until now. A thread that has waited makes them visible to the tensor cores by a
  /// fence.
  __device__ void arrive(std::uint32_t barrier) const {
    cp_async_mbarrier_arrive_noinc(barrier);
    __syncwarp();
    if (lane() == 0) mbarrier_arrive(barrier);
  }

  /// Prefetches the warp's rows of a tile into L2.
  __device__ void prefetch(const DevicePool& half, const DeviceTask& task, int first_key,
                           const PageVisit& visit) const {
    if (lane() >= kRows || visit.page < 0) return;
    const int key = first_key + warp_ * kRows + lane();
    prefetch_bulk(place_of(half, task, visit.page, key), kDimK * 2);
  }

 private:
  static constexpr int kRows = gather_rows(TileKeys);
  static_assert(kRows <= 32);

  __device__ static int lane() { return threadIdx.x % 32; }

  /// Where a key's row begins.
  __device__ static const char* place_of(const DevicePool& half, const DeviceTask& task, int page,
                                         int key) {
    return static_cast<const char*>(half.data) +
           pool_head(task) * half.head_stride * std::int64_t{2} +
           std::uint64_t{static_cast<unsigned>(max(page, 0))} * half.page_stride_bytes +
           std::uint64_t{static_cast<unsigned>(key % kPageSize)} * half.token_stride_bytes;
  }

  const Shared& shared_;
  const int warp_;
};

}  // namespace kvmesh::cuda
