// The producer warps of the decode kernels: one, or several that gather keys.
#pragma once

#include "kernels/cuda/attend/common/rows.cuh"
#include "kernels/cuda/attend/hopper/decode/decode_shared.cuh"
#include "kernels/cuda/attend/hopper/page_copies.cuh"
#include "kernels/cuda/attend/hopper/row_gather.cuh"
#include "kernels/cuda/attend/hopper/scaled_queries.cuh"

namespace kvmesh::cuda {

/// A warp that copies keys and values; the first also brings pieces and queries.
class DecodeProducer {
 public:
  __device__ DecodeProducer(const HopperParams& params, const DecodeShared& shared, int warp = 0)
      : p_(params), shared_(shared), warp_(warp) {}

  __device__ void run() {
    DecodeStream(p_.attend).run(
        [&](int n, const DeviceTask& task) {
          const int slot = n % kPieceRing;
          mbarrier_wait(shared_.piece_empty(slot), n / kPieceRing % 2 ^ 1);
          put_task(slot, task);
        },
        [&](const DeviceTask& task, int tile, const PageVisit& visit, const PageVisit&) {
          fill(task, tile, visit);
        });
  }

  /// The other warps, where all gather keys.
  __device__ void run_beside_first() {
    wait_for_inputs(p_.attend);
    for (int n = 0;; ++n) {
      const int slot = n % kPieceRing;
      mbarrier_wait(shared_.task_full(slot), n / kPieceRing % 2);
      const DeviceTask& task = shared_.task(slot);
      if (task.rows == 0) return;
      DecodeStream::run_tiles(
          p_.attend, task, warp_,
          [&](int tile, const PageVisit& visit, const PageVisit&) { fill(task, tile, visit); });
      __syncwarp();
      if (lane() == 0) mbarrier_arrive(shared_.piece_empty(slot));
    }
  }

 private:
  __device__ static int lane() { return threadIdx.x % 32; }

  __device__ void put_task(int slot, const DeviceTask& task) const {
    if (lane() == 0) {
      shared_.task(slot) = task;
      if constexpr (kGathers) mbarrier_arrive(shared_.task_full(slot));
    }
    if (task.rows > 0) load_queries(slot, task);
    cp_async_mbarrier_arrive_noinc(shared_.piece_full(slot));
    __syncwarp();
    if (lane() == 0) mbarrier_arrive(shared_.piece_full(slot));
  }

  __device__ void load_queries(int slot, const DeviceTask& task) const {
    if constexpr (kIsFloat8) {
      ScaledQueries(p_.attend, p_.scales.k, shared_.queries(slot), shared_.query_factors(slot))
          .load(task, 0, 1);
    } else {
      constexpr int kUnits = kDimK / 8;
#pragma unroll 1
      for (int i = lane(); i < kRows * kUnits; i += 32) {
        load_query_unit<kProductType>(p_.attend, task, i / kUnits, i % kUnits,
                                      shared_.queries(slot) + kImageQ.unit(i / kUnits, i % kUnits));
      }
    }
    fence_proxy_async();
  }

  __device__ void fill(const DeviceTask& task, int tile, const PageVisit& visit) {
    const int stage = stage_.place;
    const std::uint32_t parity = stage_.parity ^ 1;
    stage_.advance();
    // Visits are read until the keys are released.
    mbarrier_wait(shared_.values_empty(stage), parity);
    if constexpr (!kLatent) mbarrier_wait(shared_.keys_empty(stage), parity);
    if constexpr (kGathers) {
      gather(task, tile, visit, stage);
    } else {
      copy_boxes(task, tile, visit, stage);
    }
  }

  __device__ void gather(const DeviceTask& task, int tile, const PageVisit& visit,
                         int stage) const {
    const RowGather<DecodeShared, kTileKeys> rows(shared_, warp_);
    rows.put_visits(stage, visit);
    rows.copy<kImageK>(p_.attend.k, task, tile * kTileKeys, visit, shared_.keys(stage));
    rows.arrive(shared_.keys_full(stage));
  }

  __device__ void copy_boxes(const DeviceTask& task, int tile, const PageVisit& visit,
                             int stage) const {
    if (lane() < kTileVisits) shared_.visits(stage)[lane()] = visit;
    const bool masked = __any_sync(kAllLanes, visit.masked != 0);
    __syncwarp();  // lane 0's arrival covers what all lanes wrote
    if (lane() == 0) {
      shared_.masked(stage) = masked;
      mbarrier_arrive_expect_tx(shared_.keys_full(stage), kTile.k_bytes());
      if constexpr (!kLatent) {
        mbarrier_arrive_expect_tx(shared_.values_full(stage), kTile.v_bytes());
      }
    }
    __syncwarp();
    if constexpr (kRowScales) load_scales(task, tile, visit.page, stage);
    if (lane() >= kTileVisits) return;
    const int first = lane() * kBoxRows;
    const int group = tile * kTileKeys % kPageSize / kAtomRows;
    copy_box(shared_.keys(stage) + kImageK.bytes(first), p_.k_map, shared_.keys_full(stage),
             kEvictFirst, page_box(p_.k_steps, task, visit.page, group));
    if constexpr (kLatent) return;
    copy_box(shared_.values(stage) + kImageV.bytes(first), p_.v_map, shared_.values_full(stage),
             kEvictFirst, page_box(p_.v_steps, task, visit.page, group));
  }

  /// Half of the lanes copy the keys' scales, half the values', four each: 512 bytes per tile.
  /// Slots without a page get 0.
  __device__ void load_scales(const DeviceTask& task, int tile, int page_of_lane, int stage) const {
    static_assert(kTileKeys == 16 * 4);
    const int key = lane() % 16 * 4;
    const int page = __shfl_sync(kAllLanes, page_of_lane, key / kBoxRows);
    copy_scales(shared_.scales(stage) + lane() * 4, lane() < 16 ? p_.scales.k : p_.scales.v, task,
                page, (tile * kTileKeys + key) % kPageSize);
    cp_async_mbarrier_arrive_noinc(shared_.keys_full(stage));
  }

  const HopperParams& p_;
  const DecodeShared& shared_;
  const int warp_;
  RingTurn<kStages> stage_;
};

}  // namespace kvmesh::cuda
