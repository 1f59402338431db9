// The warp of the latent kernel for float8 pages that copies pieces and keys.
#pragma once

#include "kernels/cuda/attend/common/rows.cuh"
#include "kernels/cuda/attend/hopper/latent_float8/latent_float8_shared.cuh"
#include "kernels/cuda/attend/hopper/page_copies.cuh"

namespace kvmesh::cuda {

class LatentFloat8Producer {
 public:
  __device__ LatentFloat8Producer(const HopperParams& params, const LatentFloat8Shared& shared)
      : p_(params), shared_(shared) {}

  __device__ void run() {
    LatentStream(p_.attend).run(
        [&](int n, const DeviceTask& task) {
          const int slot = n % kPieceRing;
          mbarrier_wait(shared_.piece_empty(slot), n / kPieceRing % 2 ^ 1);
          if (lane() != 0) return;
          shared_.task(slot) = task;
          mbarrier_arrive(shared_.piece_full(slot));
        },
        [&](const DeviceTask& task, int tile, const PageVisit& visit, const PageVisit&) {
          fill(task, tile, visit);
        });
  }

 private:
  // Blocks of heads read the same pages.
  static constexpr std::uint64_t kPolicy = kHeadBlocks > 1 ? kEvictNormal : kEvictFirst;

  __device__ static int lane() { return threadIdx.x % 32; }

  __device__ void fill(const DeviceTask& task, int tile, const PageVisit& visit) {
    const int stage = tile_ % kStages;
    mbarrier_wait(shared_.empty(stage), tile_ / kStages % 2 ^ 1);
    ++tile_;
    if (lane() < kTileVisits) shared_.visits(stage)[lane()] = visit;
    const bool masked = __any_sync(kAllLanes, visit.masked != 0);
    __syncwarp();  // lane 0's arrival covers what all lanes wrote
    if (lane() == 0) {
      shared_.masked(stage) = masked;
      mbarrier_arrive_expect_tx(shared_.full(stage), kTile.stage_bytes());
    }
    __syncwarp();
    if constexpr (kRowScales) load_scales(task, tile, visit.page, stage);
    if (lane() >= kTileVisits) return;
    const int first = lane() * kBoxRows;
    const int group = (tile * kTileKeys + first) % kPageSize / kAtomRows;
    copy_box(shared_.values(stage) + kImageV.bytes(first), p_.v_map, shared_.full(stage), kPolicy,
             page_box(p_.v_steps, task, visit.page, group));
    copy_box(shared_.rest(stage) + kImageRest.bytes(first), p_.k_map, shared_.full(stage), kPolicy,
             page_box(p_.k_steps, task, visit.page, group));
  }

  /// Lanes copy four scales each, which are those of keys and of values. Slots without a page get
  /// 0.
  __device__ void load_scales(const DeviceTask& task, int tile, int page_of_lane, int stage) const {
    static_assert(kTileKeys <= 32 * 4);
    const int key = lane() * 4;
    const int page = __shfl_sync(kAllLanes, page_of_lane, min(key, kTileKeys - 1) / kBoxRows);
    if (key < kTileKeys) {
      copy_scales(shared_.scales(stage) + key, p_.scales.k, task, page,
                  (tile * kTileKeys + key) % kPageSize);
    }
    cp_async_mbarrier_arrive_noinc(shared_.full(stage));
  }

  const HopperParams& p_;
  const LatentFloat8Shared& shared_;
  int tile_ = 0;  // of all that this thread block brought
};

}  // namespace kvmesh::cuda
