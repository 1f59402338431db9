// The warps of the prefill kernel that copy keys, values and queries.
#pragma once

#include "kernels/cuda/attend/common/rows.cuh"
#include "kernels/cuda/attend/hopper/hopper_params.hpp"
#include "kernels/cuda/attend/hopper/prefill/prefill_shared.cuh"
#include "kernels/cuda/attend/hopper/tma.cuh"

namespace kvmesh::cuda {

/// The warp that copies pieces, keys and values.
class PrefillProducer {
 public:
  __device__ PrefillProducer(const HopperParams& params, const PrefillShared& shared)
      : p_(params), shared_(shared) {}

  __device__ void run() {
    PrefillStream(p_.attend).run(
        [&](int n, const DeviceTask& task) {
          const int slot = n % kPieceRing;
          mbarrier_wait(shared_.piece_empty(slot), n / kPieceRing % 2 ^ 1);
          if (lane() != 0) return;
          shared_.task(slot) = task;
          mbarrier_arrive(shared_.task_full(slot));
        },
        [&](const DeviceTask& task, int tile, const PageVisit& visit, const PageVisit&) {
          fill(task, tile, visit);
        });
  }

 private:
  __device__ static int lane() { return threadIdx.x % 32; }

  /// Keys are needed one tile before values: those of a tile come with the values of the one
  /// before.
  __device__ void fill(const DeviceTask& task, int tile, const PageVisit& visit) {
    const int row = visit.page < 0 ? p_.no_page : visit.page * p_.pool_heads + pool_head(task);
    const int group = (tile * kPrefillKeys + lane() * kBoxRows) % kPageSize / kAtomRows;
    fill_keys(visit, group, row);
    if (tile > 0) fill_values(tile_ - 1, group_before_, row_before_);
    if (tile + 1 == PrefillStream::tiles_of(task)) fill_values(tile_, group, row);
    group_before_ = group;
    row_before_ = row;
    ++tile_;
  }

  __device__ void fill_keys(const PageVisit& visit, int group, int row) {
    const int stage = tile_ % kPrefillStages;
    mbarrier_wait(shared_.keys_empty(stage), tile_ / kPrefillStages % 2 ^ 1);
    if (lane() < kTileVisits) shared_.visits(stage)[lane()] = visit;
    const bool masked = __any_sync(kAllLanes, visit.masked != 0);
    __syncwarp();  // lane 0's arrival covers what all lanes wrote
    if (lane() == 0) {
      shared_.masked(stage) = masked;
      mbarrier_arrive_expect_tx(shared_.keys_full(stage), kTile.k_bytes());
    }
    __syncwarp();
    if (lane() >= kTileVisits) return;
    cp_async_bulk_tensor_5d(shared_.keys(stage) + kImageK.bytes(lane() * kBoxRows), p_.k_map,
                            shared_.keys_full(stage), kEvictNormal, 0, 0, 0, group, row);
  }

  __device__ void fill_values(int tile, int group, int row) const {
    const int stage = tile % kPrefillStages;
    mbarrier_wait(shared_.values_empty(stage), tile / kPrefillStages % 2 ^ 1);
    if (lane() == 0) mbarrier_arrive_expect_tx(shared_.values_full(stage), kTile.v_bytes());
    __syncwarp();
    if (lane() >= kTileVisits) return;
    cp_async_bulk_tensor_5d(shared_.values(stage) + kImageV.bytes(lane() * kBoxRows), p_.v_map,
                            shared_.values_full(stage), kEvictNormal, 0, 0, 0, group, row);
  }

  const HopperParams& p_;
  const PrefillShared& shared_;
  int tile_ = 0;  // of all that this thread block brought
  int group_before_ = 0, row_before_ = 0;
};

/// The three warps that copy queries.
class PrefillQueries {
 public:
  __device__ PrefillQueries(const AttendParams& params, const PrefillShared& shared)
      : p_(params), shared_(shared) {}

  __device__ void run(int thread) const {
    constexpr int kUnits = kDimK / 8;
    constexpr int kRowsAtOnce = kQueryThreads / kUnits;
    wait_for_inputs(p_);
    for (int n = 0;; ++n) {
      const int slot = n % kPieceRing;
      mbarrier_wait(shared_.task_full(slot), n / kPieceRing % 2);
      const DeviceTask& task = shared_.task(slot);
      if (task.rows == 0) return;
      // A thread has the same unit of each of its rows.
      const int unit = thread % kUnits;
#pragma unroll 1
      for (int r = thread / kUnits; r < kTile.rows(); r += kRowsAtOnce) {
        if (thread >= kRowsAtOnce * kUnits) break;
        load_query_unit<kPoolType>(p_, task, r, unit,
                                   shared_.queries(slot) + kImageK.unit(r, unit));
      }
      fence_proxy_async();
      cp_async_mbarrier_arrive_noinc(shared_.queries_full(slot));
      mbarrier_arrive(shared_.queries_full(slot));
    }
  }

 private:
  const AttendParams& p_;
  const PrefillShared& shared_;
};

}  // namespace kvmesh::cuda
