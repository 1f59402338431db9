// Streams keys and values of a task through shared memory.
//
// step n's visits     are requested at step n - 2 (stages - 1), so that they have arrived when
// step n's rows       are requested at step n - (stages - 1)
//
// One group of asynchronous copies per step. A warp that does not share its keys has stages of its
// own, too, and waits for no other warp.
//
// Each instruction copies 16 bytes of a row. Bulk copies, one per row of 256 bytes, were slower
// (H200: decode by 2 to 12 %, prefill by 6 %).
//
// A step has kStepKeys rows in shared memory. Chunks of ChunkKeys keys take 16 of them each, of
// which the rest stay 0.
#pragma once

#include "kernels/cuda/attend/common/warp_products.cuh"

namespace kvmesh::cuda {

/// `Shared` is a StreamShared, which also has slots_offset(); its tile has tile_keys(), too.
template <auto Shared, int ChunkKeys>
class KeyStream {
 public:
  __device__ KeyStream(const AttendParams& params, const DeviceTask& task, char* shared)
      : p_(params),
        task_(task),
        slots_(reinterpret_cast<PageVisit*>(shared + Shared.slots_offset()) +
               key_warp() * Shared.tile.slot_ring() * kStepKeys),
        stages_(shared_address(shared) + Shared.q_bytes() +
                key_warp() * kStages * Shared.stage_bytes()) {}

  __device__ int steps() const {
    return (task_.keys + Shared.tile.tile_keys() - 1) / Shared.tile.tile_keys();
  }
  /// The task's index of this warp's first key in a step.
  __device__ int first_key(int step) const {
    return (step * kKeyWarps + key_warp()) * (kStepKeys / 16 * ChunkKeys);
  }
  /// The number of a row's key in a step, if it has one.
  __device__ static int key_of_row(int row) {
    return ChunkKeys == 16 ? row : row / 16 * ChunkKeys + row % 16;
  }
  __device__ static bool has_key(int row) { return ChunkKeys == 16 || row % 16 < ChunkKeys; }
  /// The visit of each key.
  __device__ PageVisit* slots(int step) const {
    return slots_ + step % Shared.tile.slot_ring() * kStepKeys;
  }
  /// Rows in the layout of kRowsK.
  __device__ std::uint32_t keys(int step) const {
    return stages_ + step % kStages * Shared.stage_bytes();
  }
  /// Rows in the layout of kRowsV.
  __device__ std::uint32_t values(int step) const { return keys(step) + Shared.k_stage_bytes(); }

  /// Requests the visits of the steps from `first` on.
  __device__ void prepare(int first = 0) {
    if (task_.keys == 0) return;
    for (int step = first; step < first + kStages - 1; ++step) fetch_slots(step);
    cp_async_commit_group();
  }

  /// Requests the steps from `first` on. REQUIRES: `prepare` was called; there is a step.
  __device__ void start(int first = 0) {
    cp_async_wait_group<0>();
    step_sync();
    for (int step = first; step < first + kStages - 1; ++step) fetch(step);
  }

  /// Waits for a step; then the stage of the one before it is free and is filled.
  __device__ void advance(int step) {
    cp_async_wait_group<kStages - 2>();
    step_sync();
    fetch(step + kStages - 1);
  }

  __device__ void finish() { cp_async_wait_group<0>(); }

  /// True if this step has a page of which some row may not see all keys.
  __device__ bool any_masked(int step) const {
    bool masked = false;
#pragma unroll
    for (int key = 0; key < kStepKeys; key += 32) {
      masked |= slots(step)[(key + thread() % 32) % kStepKeys].masked != 0;
    }
    return __any_sync(kAllLanes, masked);
  }

 private:
  /// Index among the threads that share keys.
  __device__ static int thread() {
    return kRowWarps == 1 ? opaque(threadIdx.x) % 32 : opaque(threadIdx.x);
  }
  /// Index of this warp's share of a tile's keys.
  __device__ static int key_warp() { return kRowWarps == 1 ? opaque(threadIdx.x) / 32 : 0; }

  __device__ void fetch(int step) {
    if (step < steps()) {
      fetch_rows<kDimK>(keys(step), p_.k, step);
      fetch_rows<kDimV>(values(step), p_.v, step);
    }
    fetch_slots(step + kStages - 1);
    cp_async_commit_group();
  }

  /// The visits of a step, one per key. Past the end the last one repeats, so that every address is
  /// valid.
  __device__ void fetch_slots(int step) {
    const int thread = KeyStream::thread();
    if (thread >= kStepKeys) return;
    const int key = min(first_key(step) + key_of_row(thread), task_.keys - 1);
    cp_async_8_cached(shared_address(slots(step) + thread),
                      p_.visits + task_.first_visit + key / kPageSize);
  }

  // Slots past the end are filled with 0: they may hold NaN, and 0 * NaN is NaN.
  template <int Dim>
  __device__ void fetch_rows(std::uint32_t to, const DevicePool& pool, int step) {
    constexpr SharedRows kRows{Dim};
    constexpr unsigned kUnits = kRows.units();
    constexpr unsigned kAll = kStepKeys * kUnits;
    const unsigned thread = KeyStream::thread();
    const char* base = opaque(static_cast<const char*>(pool.data) +
                              pool_head(task_) * pool.head_stride * std::int64_t{2});
    const PageVisit* visits = slots(step);
    const unsigned first = first_key(step);
    const unsigned live = max(task_.keys - first_key(step), 0);
#pragma unroll
    for (unsigned i = 0; i < kAll; i += kStepThreads) {
      // Where whole rows are copied, a thread keeps its place in them.
      constexpr bool kWholeRows = kStepThreads % kUnits == 0;
      const unsigned row = kWholeRows ? thread / kUnits + i / kUnits : (i + thread) / kUnits;
      const unsigned unit = kWholeRows ? thread % kUnits : (i + thread) % kUnits;
      if (kAll % kStepThreads != 0 && i + thread >= kAll) break;
      const unsigned key = key_of_row(static_cast<int>(row));
      const char* in_page =
          base + ((first + key) % kPageSize * pool.token_stride_bytes + unit * 16);
      const char* from =
          in_page + std::uint64_t{static_cast<unsigned>(visits[row].page)} * pool.page_stride_bytes;
      const bool is_there =
          key < live && has_key(static_cast<int>(row)) && (Dim % 16 == 0 || unit * 8 < Dim);
      cp_async_16_zfill(kRows.unit(to, row, unit), from, is_there ? 16 : 0);
    }
  }

  const AttendParams& p_;
  const DeviceTask& task_;
  PageVisit* const slots_;
  const std::uint32_t stages_;
};

}  // namespace kvmesh::cuda
