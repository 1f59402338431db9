// The warps of the prefill kernel that copy keys, values and queries.
#pragma once

#include "kernels/cuda/attend/common/rows.cuh"
#include "kernels/cuda/attend/hopper/page_copies.cuh"
#include "kernels/cuda/attend/hopper/prefill/prefill_shared.cuh"
#include "kernels/cuda/attend/hopper/row_gather.cuh"

namespace kvmesh::cuda {

/// A warp that gathers keys and values.
class PrefillGather {
 public:
  __device__ PrefillGather(const AttendParams& params, const PrefillShared& shared, int warp)
      : p_(params), shared_(shared), rows_(shared, warp) {}

  /// In the order of PrefillProducer's.
  __device__ void fill(const DeviceTask& task, int tile, const PageVisit& visit) {
    const int stage = tile_ % kPrefillStages;
    mbarrier_wait(shared_.keys_empty(stage), tile_ / kPrefillStages % 2 ^ 1);
    rows_.put_visits(stage, visit);
    rows_.copy<kImageK>(p_.k, task, tile * kPrefillKeys, visit, shared_.keys(stage));
    rows_.arrive(shared_.keys_full(stage));
    if (tile > 0) fill_values(task, tile - 1, tile_ - 1, visit_before_);
    if (tile + 1 == PrefillStream::tiles_of(task)) fill_values(task, tile, tile_, visit);
    visit_before_ = visit;
    ++tile_;
  }

 private:
  __device__ void fill_values(const DeviceTask& task, int tile, int count,
                              const PageVisit& visit) const {
    const int stage = count % kPrefillStages;
    mbarrier_wait(shared_.values_empty(stage), count / kPrefillStages % 2 ^ 1);
    rows_.copy<kImageV>(p_.v, task, tile * kPrefillKeys, visit, shared_.values(stage));
    rows_.arrive(shared_.values_full(stage));
  }

  const AttendParams& p_;
  const PrefillShared& shared_;
  const RowGather<PrefillShared, kPrefillKeys> rows_;
  int tile_ = 0;  // of all that this thread block brought
  PageVisit visit_before_{};
};

/// The warp that copies pieces, keys and values.
class PrefillProducer {
 public:
  __device__ PrefillProducer(const HopperParams& params, const PrefillShared& shared)
      : p_(params), shared_(shared) {}

  __device__ void run() {
    PrefillGather gather(p_.attend, shared_, 0);
    PrefillStream(p_.attend).run(
        [&](int n, const DeviceTask& task) {
          const int slot = n % kPieceRing;
          mbarrier_wait(shared_.piece_empty(slot), n / kPieceRing % 2 ^ 1);
          if (lane() != 0) return;
          shared_.task(slot) = task;
          mbarrier_arrive(shared_.task_full(slot));
        },
        [&](const DeviceTask& task, int tile, const PageVisit& visit, const PageVisit&) {
          if constexpr (kGathers) {
            gather.fill(task, tile, visit);
          } else {
            fill(task, tile, visit);
          }
        });
  }

 private:
  __device__ static int lane() { return threadIdx.x % 32; }

  /// Where a tile of keys or of values goes: memory and barriers.
  struct Place {
    std::uint32_t to, full, empty, parity;
  };

  /// Keys are needed one tile before values: those of a tile come with the values of the one
  /// before.
  __device__ void fill(const DeviceTask& task, int tile, const PageVisit& visit) {
    const int group = (tile * kPrefillKeys + lane() * kBoxRows) % kPageSize / kAtomRows;
    fill_keys(task, tile, visit, group);
    const PageBox values = page_box(p_.v_steps, task, visit.page, group);
    if (tile > 0) fill_values(tile_ - 1, values_before_);
    if (tile + 1 == PrefillStream::tiles_of(task)) fill_values(tile_, values);
    values_before_ = values;
    ++tile_;
  }

  __device__ void fill_keys(const DeviceTask& task, int tile, const PageVisit& visit, int group) {
    const int stage = tile_ % kPrefillStages;
    const Place place =
        kIsFloat8 ? next_float8()
                  : Place{shared_.keys(stage), shared_.keys_full(stage), shared_.keys_empty(stage),
                          static_cast<std::uint32_t>(tile_ / kPrefillStages % 2)};
    mbarrier_wait(place.empty, place.parity ^ 1);
    const int kept = tile_ % kKeptTiles;
    if (lane() < kTileVisits) shared_.visits(kept)[lane()] = visit;
    const bool masked = __any_sync(kAllLanes, visit.masked != 0);
    __syncwarp();  // lane 0's arrival covers what all lanes wrote
    if (lane() == 0) {
      shared_.masked(kept) = masked;
      mbarrier_arrive_expect_tx(place.full, kPoolImageK.bytes(kPrefillKeys));
    }
    __syncwarp();
    if constexpr (kRowScales) load_scales(task, tile, visit.page, place.full);
    if (lane() >= kTileVisits) return;
    copy_box(place.to + kPoolImageK.bytes(lane() * kBoxRows), p_.k_map, place.full, kEvictNormal,
             page_box(p_.k_steps, task, visit.page, group));
  }

  __device__ void fill_values(int tile, const PageBox& box) {
    const int stage = tile % kPrefillStages;
    const Place place = kIsFloat8 ? next_float8()
                                  : Place{shared_.values(stage), shared_.values_full(stage),
                                          shared_.values_empty(stage),
                                          static_cast<std::uint32_t>(tile / kPrefillStages % 2)};
    mbarrier_wait(place.empty, place.parity ^ 1);
    if (lane() == 0) mbarrier_arrive_expect_tx(place.full, kPoolImageV.bytes(kPrefillKeys));
    __syncwarp();
    if constexpr (kRowScales) cp_async_mbarrier_arrive_noinc(place.full);
    if (lane() >= kTileVisits) return;
    copy_box(place.to + kPoolImageV.bytes(lane() * kBoxRows), p_.v_map, place.full, kEvictNormal,
             box);
  }

  /// Keys and values share a ring of float8 tiles; PrefillConverter takes them in this order.
  __device__ Place next_float8() {
    const int slot = float8_tile_ % kFloat8Tiles;
    const auto parity = static_cast<std::uint32_t>(float8_tile_ / kFloat8Tiles % 2);
    ++float8_tile_;
    return {shared_.float8_tile(slot), shared_.float8_full(slot), shared_.float8_empty(slot),
            parity};
  }

  /// The scales of a tile's keys and values, four a lane; slots without a page get 0.
  __device__ void load_scales(const DeviceTask& task, int tile, int page_of_lane,
                              std::uint32_t full) const {
    constexpr int kLanes = kPrefillKeys / 4;
#pragma unroll
    for (int first = 0; first < 2 * kLanes; first += 32) {
      const int unit = first + lane();
      const int key = unit % kLanes * 4;
      const int page = __shfl_sync(kAllLanes, page_of_lane, key / kBoxRows);
      copy_scales(shared_.key_scales(tile_) + unit * 4, unit < kLanes ? p_.scales.k : p_.scales.v,
                  task, page, (tile * kPrefillKeys + key) % kPageSize);
    }
    cp_async_mbarrier_arrive_noinc(full);
  }

  const HopperParams& p_;
  const PrefillShared& shared_;
  int tile_ = 0;         // of all that this thread block brought
  int float8_tile_ = 0;  // the same of keys and values, each counted
  PageBox values_before_{};
};

/// The three warps that copy queries, and then gather keys beside the first.
class PrefillQueries {
 public:
  __device__ PrefillQueries(const HopperParams& params, const PrefillShared& shared)
      : p_(params.attend), shared_(shared) {}

  __device__ void run(int thread) const {
    const int warp = 1 + thread / 32;
    PrefillGather gather(p_, shared_, warp);
    wait_for_inputs(p_);
    for (int n = 0;; ++n) {
      const int slot = n % kPieceRing;
      mbarrier_wait(shared_.task_full(slot), n / kPieceRing % 2);
      const DeviceTask& task = shared_.task(slot);
      if (task.rows == 0) return;
      copy<kProductType>(p_, shared_, task, slot, thread);
      if constexpr (kGathers) {
        PrefillStream::run_tiles(p_, task, warp,
                                 [&](int tile, const PageVisit& visit, const PageVisit&) {
                                   gather.fill(task, tile, visit);
                                 });
        __syncwarp();
        if (thread % 32 == 0) mbarrier_arrive(shared_.piece_empty(slot));
      }
    }
  }

  /// Starts copies of a piece's queries as elements of type `To`.
  template <Dtype To>
  __device__ static void copy(const AttendParams& p, const PrefillShared& shared,
                              const DeviceTask& task, int slot, int thread) {
    constexpr int kUnits = kDimK / 8;
    constexpr int kRowsAtOnce = kQueryThreads / kUnits;
    // A thread has the same unit of each of its rows.
    const int unit = thread % kUnits;
#pragma unroll 1
    for (int r = thread / kUnits; r < kTile.rows(); r += kRowsAtOnce) {
      if (thread >= kRowsAtOnce * kUnits) break;
      load_query_unit<To>(p, task, r, unit, shared.queries(slot) + kImageK.unit(r, unit));
    }
    arrive(shared, slot);
  }
  __device__ static void arrive(const PrefillShared& shared, int slot) {
    fence_proxy_async();
    cp_async_mbarrier_arrive_noinc(shared.queries_full(slot));
    mbarrier_arrive(shared.queries_full(slot));
  }

 private:
  const AttendParams& p_;
  const PrefillShared& shared_;
};

}  // namespace kvmesh::cuda
