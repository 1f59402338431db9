// The steps that all kernels on windows share: which cells a thread takes, the wait for a cell, and
// the meeting of the ranks.
//
// The last thread block of a kernel sends every rank the epoch and waits for theirs; the others
// store and load cells. peer_kernels.cu says why two slots are then enough: for any sequence of
// such kernels, as each has an epoch of its own.
#pragma once

#include "comm/combine/peer/kernels/peer_wait.cuh"
#include "core/cuda/device/combine_target.cuh"
#include "core/cuda/device/dependent_launch.cuh"
#include "core/cuda/device/warp.cuh"

namespace kvmesh::cuda {

// Words are for few rows, which small blocks spread over more SMs; lines are for many, which large
// blocks spread evenly while the blocks of the kernel before are still there. Two H200, 32 rows:
// 3.10 us with 256 threads, 3.28 with 512; 8192 rows: 10.7 and 7.8.
template <RowForm Form>
constexpr int kBlockThreads = Form == RowForm::kWords ? 256 : 512;

__device__ inline int lane() {
  constexpr int kWarpThreads = 32;
  return static_cast<int>(threadIdx.x) % kWarpThreads;
}

/// Runs `body(index)` for all indices below `count` and past it, up to whole warps: each warp's
/// lanes go through it together.
template <class Body>
__device__ void for_my_indices(int count, const Body& body) {
  const auto block = static_cast<int>(blockDim.x);
  const int threads = (static_cast<int>(gridDim.x) - 1) * block;
  const int first = static_cast<int>(blockIdx.x) * block + static_cast<int>(threadIdx.x) - lane();
  for (int at = first; at < count; at += threads) {
    if (!body(at + lane())) return;
  }
}

struct CellOfRow {
  int row, cell;
};

/// `by_cells`: cells of a row as words; lines of a row as lines.
template <RowForm Form>
__device__ inline CellOfRow cell_of_index(const Divisor& by_cells, int index) {
  constexpr int kGroup = Form == RowForm::kWords ? 1 : kCellsPerLine;
  const int group = index / kGroup;
  const int row = by_cells.quotient(group);
  return {row, by_cells.remainder(group, row) * kGroup + index % kGroup};
}

/// The word of a row's cell that has the LSE or the epoch: of lines, that of their last cell.
/// All lanes of the warp call it.
template <RowForm Form>
__device__ inline std::uint32_t from_end(std::uint32_t word) {
  if constexpr (Form == RowForm::kWords) return word;
  return __shfl_sync(kAllLanes, word, kCellsPerLine - 1, kCellsPerLine);
}

/// Returns the cell that `source` stores at `from`, loaded again and again until it is there;
/// anything, in all lanes, once the wait has failed. All lanes of the warp call it, with the cell
/// that they have loaded before; those without `is_sent` wait for none.
template <RowForm Form>
__device__ inline uint4 awaited_cell(const PeerCall& call, const unsigned char* from, bool is_sent,
                                     int source, std::uint32_t epoch, PeerWait& wait, uint4 cell) {
  while (const unsigned waiting =
             __ballot_sync(kAllLanes, is_sent & (from_end<Form>(cell.w) != epoch))) {
    if (!wait.all_go_on(call, __shfl_sync(kAllLanes, source, __ffs(waiting) - 1))) break;
    if (is_sent) cell = ld_relaxed_sys_b128(from);
  }
  return cell;
}

/// Lets the next kernel of the stream start beside this one. Where ranks share a GPU at the same
/// time, as under MPS, it must not: attention's thread blocks would fill the GPU and wait for this
/// kernel, which waits for a rank whose attention then finds no SM.
__device__ inline void start_next_kernel(const PeerCall& call) {
  if (!call.window.shares_gpus) griddepcontrol_launch_dependents();
}

__device__ inline bool is_meeting_block() { return blockIdx.x == gridDim.x - 1; }

__device__ inline std::uint32_t next_epoch(const PeerCall& call) {
  return call.window.epochs[blockIdx.x] + 1;
}

/// A thread for each peer sends it the epoch: this rank has begun the call. Then it waits for the
/// peer's.
__device__ inline void meet_peers(const PeerCall& call, std::uint32_t epoch) {
  const int peer = static_cast<int>(threadIdx.x);
  if (peer >= call.ranks || peer == call.rank) return;
  st_relaxed_sys_u32(call.window.windows[peer] + call.rank * kArrivalBytes, epoch);
  PeerWait wait;
  const unsigned char* word = call.window.windows[call.rank] + peer * kArrivalBytes;
  // A peer may be one call ahead.
  while (static_cast<std::int32_t>(ld_relaxed_sys_u32(word) - epoch) < 0) {
    if (!wait.goes_on(call, peer, PeerPhase::kArrival)) return;
  }
}

/// Notes the epoch for the next kernel. All threads call it.
__device__ inline void end_epoch(const PeerCall& call, std::uint32_t epoch) {
  __syncthreads();  // all threads have read the epoch
  const int last = is_meeting_block() ? kMostPeerBlocks : static_cast<int>(blockIdx.x) + 1;
  for (int i = static_cast<int>(blockIdx.x + threadIdx.x); i < last;
       i += static_cast<int>(blockDim.x)) {
    call.window.epochs[i] = epoch;
  }
}

}  // namespace kvmesh::cuda
