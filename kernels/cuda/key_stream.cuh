// Keys and values of a task on their way through shared memory.
//
//   step n's visits     asked for at step n - 2 (stages - 1), so that they are there when
//   step n's rows       are asked for at step n - (stages - 1)
//
// One group of asynchronous copies a step. A warp that has its keys for itself has its stages for
// itself, too, and waits for no other.
//
// Where the chip has bulk copies (kBulkCopies), a row is one instruction of one thread, and a
// barrier in shared memory counts its bytes; else it is one instruction for each 16 bytes.
#pragma once

#include "kernels/cuda/attend_config.cuh"

namespace kvmesh::cuda {

class KeyStream {
 public:
  __device__ KeyStream(const AttendParams& params, const DeviceTask& task, char* shared)
      : p_(params),
        task_(task),
        slots_(reinterpret_cast<DeviceVisit*>(shared + kShared.slots_offset()) +
               key_warp() * kTile.slot_ring() * kStepKeys),
        stages_(shared_address(shared) + kShared.q_bytes() +
                key_warp() * kStages * kShared.stage_bytes()),
        barriers_(shared_address(shared) + kShared.barriers_offset() + key_warp() * kStages * 8) {}

  /// Once, before all else; a barrier of the block must follow.
  __device__ void initialise() {
    if constexpr (kBulkCopies) {
      if (thread() != 0) return;
      for (int stage = 0; stage < kStages; ++stage) mbarrier_init(barriers_ + stage * 8, 1);
      fence_mbarrier_init_release_cluster();
    }
  }

  __device__ int steps() const { return (task_.keys + kTile.tile_keys() - 1) / kTile.tile_keys(); }
  /// The task's index of this warp's first key in a step.
  __device__ int first_key(int step) const { return (step * kKeyWarps + key_warp()) * kStepKeys; }
  /// The visit of each key.
  __device__ DeviceVisit* slots(int step) const {
    return slots_ + step % kTile.slot_ring() * kStepKeys;
  }
  /// Rows of kPitchK elements.
  __device__ std::uint32_t keys(int step) const {
    return stages_ + step % kStages * kShared.stage_bytes();
  }
  /// Rows of kPitchV elements.
  __device__ std::uint32_t values(int step) const { return keys(step) + kShared.k_stage_bytes(); }

  /// Asks for the visits of the first steps.
  __device__ void prepare() {
    if (task_.keys == 0) return;
    for (int step = 0; step < kStages - 1; ++step) fetch_slots(step);
    cp_async_commit_group();
  }

  /// Asks for the first steps; `prepare` came before. There must be one.
  __device__ void start() {
    cp_async_wait_group<0>();
    step_sync();
    for (int step = 0; step < kStages - 1; ++step) fetch(step);
  }

  /// Waits for a step; the stage of the one before it is free then, and is filled.
  __device__ void advance(int step) {
    cp_async_wait_group<kStages - 2>();
    if constexpr (kBulkCopies) wait_for_bulk(step % kStages);
    step_sync();
    fetch(step + kStages - 1);
  }

  __device__ void finish() { cp_async_wait_group<0>(); }

  /// Is there a page in this step of which some row may not see all?
  __device__ bool any_masked(int step) const {
    bool masked = false;
#pragma unroll
    for (int key = 0; key < kStepKeys; key += 32) {
      const DeviceVisit& visit = slots(step)[(key + thread() % 32) % kStepKeys];
      masked |= visit.masked != 0 || visit.head_classes >= 0;
    }
    return __any_sync(kAllLanes, masked);
  }

 private:
  /// Among those that share keys.
  __device__ static int thread() {
    return kRowWarps == 1 ? opaque(threadIdx.x) % 32 : opaque(threadIdx.x);
  }
  /// Which share of a tile's keys is this warp's.
  __device__ static int key_warp() { return kRowWarps == 1 ? opaque(threadIdx.x) / 32 : 0; }

  __device__ void fetch(int step) {
    if (step < steps()) fetch_both(step);
    fetch_slots(step + kStages - 1);
    cp_async_commit_group();
  }

  __device__ void fetch_both(int step) {
    if constexpr (kBulkCopies) {
      fetch_bulk(step);
    } else {
      fetch_rows<kDimK, kPitchK>(keys(step), p_.k, step);
      fetch_rows<kDimV, kPitchV>(values(step), p_.v, step);
    }
  }

  /// The visits of a step, one a key. Past the end the last one stands in, so that every address is
  /// a valid one.
  __device__ void fetch_slots(int step) {
    const int thread = KeyStream::thread();
    if (thread >= kStepKeys) return;
    const int key = min(first_key(step) + thread, task_.keys - 1);
    cp_async_16_cached(shared_address(slots(step) + thread),
                       p_.visits + task_.first_visit + key / kPageSize);
  }

  /// A row a thread: first the keys, then the values.
  __device__ void fetch_bulk(int step) {
    static_assert(!kBulkCopies || 2 * kStepKeys <= kStepThreads);
    const int thread = KeyStream::thread();
    const int live = min(max(task_.keys - first_key(step), 0), kStepKeys);
    const std::uint32_t barrier = barriers_ + step % kStages * 8;
    if (thread == 0) mbarrier_arrive_expect_tx(barrier, live * (kDimK + kDimV) * 2);
    if (thread >= 2 * kStepKeys) return;
    const int at = thread % kStepKeys;
    const bool is_value = thread >= kStepKeys;
    const int bytes = (is_value ? kDimV : kDimK) * 2;
    const std::uint32_t to =
        keys(step) + (is_value ? kShared.k_stage_bytes() + at * kPitchV * 2 : at * kPitchK * 2);
    if (at < live) {
      cp_async_bulk(to, row_of_key(is_value ? p_.v : p_.k, step, at), bytes, barrier);
    } else {
      clear_row(to, bytes);
    }
  }

  __device__ const char* row_of_key(const DevicePool& pool, int step, int at) const {
    const unsigned in_page = static_cast<unsigned>(first_key(step) + at) % kPageSize;
    return static_cast<const char*>(pool.data) +
           task_.kv_head * pool.head_stride * std::int64_t{2} +
           std::uint64_t{static_cast<unsigned>(slots(step)[at].page)} * pool.page_stride_bytes +
           in_page * pool.token_stride_bytes;
  }

  // What lies past the end may be NaN, and so would 0 * NaN be.
  __device__ static void clear_row(std::uint32_t to, int bytes) {
    for (int i = 0; i < bytes; i += 16) st_shared_zero_16(to + i);
    fence_proxy_async_shared();
  }

  /// A stage's phases alternate; which one is next is a bit of `phases_`.
  __device__ void wait_for_bulk(int stage) {
    while (!mbarrier_try_wait_parity(barriers_ + stage * 8, phases_ >> stage & 1)) {
    }
    phases_ ^= 1u << stage;
  }

  // Slots past the end are filled with 0: what lies in them may be NaN, and so would 0 * NaN be.
  template <int Dim, int Pitch>
  __device__ void fetch_rows(std::uint32_t to, const DevicePool& pool, int step) {
    constexpr unsigned kUnits = (Pitch - 8) / 8;
    constexpr unsigned kAll = kStepKeys * kUnits;
    const unsigned thread = KeyStream::thread();
    const char* base = opaque(static_cast<const char*>(pool.data) +
                              task_.kv_head * pool.head_stride * std::int64_t{2});
    const DeviceVisit* visits = slots(step);
    const unsigned first = first_key(step);
    const unsigned live = max(task_.keys - first_key(step), 0);
#pragma unroll
    for (unsigned i = 0; i < kAll; i += kStepThreads) {
      // Where whole rows go by, a thread keeps its place in them.
      constexpr bool kWholeRows = kStepThreads % kUnits == 0;
      const unsigned row = kWholeRows ? thread / kUnits + i / kUnits : (i + thread) / kUnits;
      const unsigned unit = kWholeRows ? thread % kUnits : (i + thread) % kUnits;
      if (kAll % kStepThreads != 0 && i + thread >= kAll) break;
      const char* in_page =
          base + ((first + row) % kPageSize * pool.token_stride_bytes + unit * 16);
      const char* from =
          in_page + std::uint64_t{static_cast<unsigned>(visits[row].page)} * pool.page_stride_bytes;
      const bool is_there = row < live && (Dim % 16 == 0 || unit * 8 < Dim);
      cp_async_16_zfill(to + (row * Pitch + unit * 8) * 2, from, is_there ? 16 : 0);
    }
  }

  const AttendParams& p_;
  const DeviceTask& task_;
  DeviceVisit* const slots_;
  const std::uint32_t stages_;
  const std::uint32_t barriers_;
  std::uint32_t phases_ = 0;
};

}  // namespace kvmesh::cuda
