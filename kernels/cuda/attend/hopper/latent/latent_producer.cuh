// The warps of the latent kernel that copy keys and queries.
#pragma once

#include "kernels/cuda/attend/common/rows.cuh"
#include "kernels/cuda/attend/hopper/latent/latent_shared.cuh"
#include "kernels/cuda/attend/hopper/page_copies.cuh"
#include "kernels/cuda/attend/hopper/row_gather.cuh"

namespace kvmesh::cuda {

// Blocks of heads read the same pages.
constexpr bool kSharesPages = kHeadBlocks > 1;

/// A warp that gathers keys.
class LatentGather {
 public:
  __device__ LatentGather(const AttendParams& params, const LatentShared& shared, int warp)
      : keys_(params.k), shared_(shared), rows_(shared, warp) {}

  __device__ void fill(const DeviceTask& task, int tile, const PageVisit& visit,
                       const PageVisit& next) {
    const int stage = tile_ % kLatentStages, first_key = tile * kLatentKeys;
    const std::uint32_t parity = tile_ / kLatentStages % 2 ^ 1;
    ++tile_;
    mbarrier_wait(shared_.left_empty(stage), parity);
    rows_.copy<kImageLeft>(keys_, task, first_key, visit, shared_.left(stage));
    rows_.arrive(shared_.left_full(stage));
    mbarrier_wait(shared_.right_empty(stage), parity);
    rows_.put_visits(stage, visit);
    rows_.copy<kImageRight, kTile.left_dim()>(keys_, task, first_key, visit, shared_.right(stage));
    rows_.arrive(shared_.right_full(stage));
    if constexpr (kSharesPages) rows_.prefetch(keys_, task, first_key + kLatentKeys, next);
  }

 private:
  const DevicePool& keys_;
  const LatentShared& shared_;
  const RowGather<LatentShared, kLatentKeys> rows_;
  int tile_ = 0;  // of all that this thread block brought
};

/// The warp that copies pieces and keys.
class LatentProducer {
 public:
  __device__ LatentProducer(const HopperParams& params, const LatentShared& shared)
      : p_(params), shared_(shared) {}

  __device__ void run() {
    LatentGather gather(p_.attend, shared_, 0);
    LatentStream(p_.attend).run(
        [&](int n, const DeviceTask& task) {
          mbarrier_wait(shared_.piece_empty(), n % 2 ^ 1);
          if (lane() != 0) return;
          shared_.task(0) = task;
          mbarrier_arrive(shared_.task_full());
        },
        [&](const DeviceTask& task, int tile, const PageVisit& visit, const PageVisit& next) {
          if constexpr (kGathers) {
            gather.fill(task, tile, visit, next);
          } else {
            fill(task, tile, visit);
            if constexpr (kSharesPages) prefetch(task, tile + 1, next);
          }
        });
  }

 private:
  static constexpr std::uint64_t kPolicy = kSharesPages ? kEvictNormal : kEvictFirst;

  __device__ static int lane() { return threadIdx.x % 32; }

  __device__ void fill(const DeviceTask& task, int tile, const PageVisit& visit) {
    const int stage = tile_ % kLatentStages;
    const std::uint32_t parity = tile_ / kLatentStages % 2 ^ 1;
    ++tile_;
    const PageBox left = left_box(task, tile, visit);
    mbarrier_wait(shared_.left_empty(stage), parity);
    if (lane() == 0) mbarrier_arrive_expect_tx(shared_.left_full(stage), kTile.left_bytes());
    __syncwarp();
    if (lane() < kTileVisits) {
      copy_box(shared_.left(stage) + kImageLeft.bytes(lane() * kBoxRows), p_.v_map,
               shared_.left_full(stage), kPolicy, left);
    }
    mbarrier_wait(shared_.right_empty(stage), parity);
    if (lane() < kTileVisits) shared_.visits(stage)[lane()] = visit;
    const bool masked = __any_sync(kAllLanes, visit.masked != 0);
    __syncwarp();  // lane 0's arrival covers what all lanes wrote
    if (lane() == 0) {
      shared_.masked(stage) = masked;
      mbarrier_arrive_expect_tx(shared_.right_full(stage), kTile.right_bytes());
    }
    __syncwarp();
    if (lane() < kTileVisits) {
      copy_box(shared_.right(stage) + kImageRight.bytes(lane() * kBoxRows), p_.k_map,
               shared_.right_full(stage), kPolicy, right_of(left));
    }
  }

  __device__ PageBox left_box(const DeviceTask& task, int tile, const PageVisit& visit) const {
    return page_box(p_.k_steps, task, visit.page, tile * kLatentKeys % kPageSize / kAtomRows);
  }
  __device__ static PageBox right_of(const PageBox& left) {
    return {left.atom + kImageLeft.atoms(), left.group, left.page};
  }

  /// A stage is free for less time than memory takes. With half of the bytes in L2 memory can be
  /// ahead of the stages.
  __device__ void prefetch(const DeviceTask& task, int tile, const PageVisit& visit) const {
    if (lane() >= kTileVisits || visit.page < 0) return;
    const PageBox left = left_box(task, tile, visit);
    prefetch_box(p_.v_map, left);
    prefetch_box(p_.k_map, right_of(left));
  }

  const HopperParams& p_;
  const LatentShared& shared_;
  int tile_ = 0;  // of all that this thread block brought
};

/// The three warps that copy queries, and then gather keys beside the first.
class LatentQueries {
 public:
  __device__ LatentQueries(const HopperParams& params, const LatentShared& shared)
      : p_(params.attend), shared_(shared) {}

  __device__ void run(int thread) const {
    constexpr int kUnits = kDimK / 8;
    const int warp = 1 + thread / 32;
    LatentGather gather(p_, shared_, warp);
    wait_for_inputs(p_);
    for (int n = 0;; ++n) {
      mbarrier_wait(shared_.task_full(), n % 2);
      const DeviceTask& task = shared_.task(0);
      if (task.rows == 0) return;
#pragma unroll 1
      for (int i = thread; i < kLatentRows * kUnits; i += kQueryThreads) {
        load_query_unit<kPoolType>(p_, task, i / kUnits, i % kUnits,
                                   shared_.queries() + kImageQ.unit(i / kUnits, i % kUnits));
      }
      fence_proxy_async();
      cp_async_mbarrier_arrive_noinc(shared_.queries_full());
      mbarrier_arrive(shared_.queries_full());
      if constexpr (kGathers) {
        LatentStream::run_tiles(p_, task, warp,
                                [&](int tile, const PageVisit& visit, const PageVisit& next) {
                                  gather.fill(task, tile, visit, next);
                                });
        __syncwarp();
        if (thread % 32 == 0) mbarrier_arrive(shared_.piece_empty());
      }
    }
  }

 private:
  const AttendParams& p_;
  const LatentShared& shared_;
};

}  // namespace kvmesh::cuda
