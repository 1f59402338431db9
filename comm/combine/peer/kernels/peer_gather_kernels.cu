// The query gather over mapped memory: one kernel stores this rank's rows into the windows of all
// other ranks, and theirs out of its own window into the tensor of all heads as they arrive.
//
// It uses the slots and the epochs of the peer combine, as one more call on the windows; a row has
// the place of a combine to heads with owner and source exchanged. Rows travel as bytes: their type
// does not matter, and the place of the LSE stays unused.
#include <algorithm>

#include "comm/combine/peer/kernels/peer_exchange.cuh"
#include "comm/combine/peer/kernels/peer_gather_params.hpp"
#include "core/cuda/device/dependent_launch.cuh"
#include "core/cuda/launch_overlapping.hpp"
#include "core/cuda/load_kernels.hpp"

namespace kvmesh::cuda {
namespace {

constexpr int kPairBytes = 2;  // no element is smaller
constexpr int kUnitPairs = kUnitBytes / kPairBytes;
static_assert(kUnitPairs == 4, "a unit is a uint2");

/// A unit of a row; 0 past its end. Wide: units begin at multiples of their size.
template <bool Wide>
__device__ uint2 loaded_unit(const PeerGatherParams& p, const unsigned char* row, int unit) {
  const int at = unit * kUnitBytes;
  if constexpr (Wide) {
    return at < p.row_bytes ? *reinterpret_cast<const uint2*>(row + at) : make_uint2(0, 0);
  } else {
    std::uint32_t pairs[kUnitPairs] = {};
#pragma unroll
    for (int i = 0; i < kUnitPairs; ++i) {
      const int from = at + i * kPairBytes;
      if (from < p.row_bytes) pairs[i] = *reinterpret_cast<const std::uint16_t*>(row + from);
    }
    return {pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16};
  }
}

template <bool Wide>
__device__ void store_unit(const PeerGatherParams& p, unsigned char* row, int unit, uint2 words) {
  const int at = unit * kUnitBytes;
  if constexpr (Wide) {
    if (at < p.row_bytes) *reinterpret_cast<uint2*>(row + at) = words;
  } else {
#pragma unroll
    for (int i = 0; i < kUnitPairs; ++i) {
      const int to = at + i * kPairBytes;
      const std::uint32_t pair = (i < 2 ? words.x : words.y) >> i % 2 * 16;
      if (to < p.row_bytes) {
        *reinterpret_cast<std::uint16_t*>(row + to) = static_cast<std::uint16_t>(pair);
      }
    }
  }
}

template <RowForm Form, bool Wide>
__device__ uint4 cell_of_row(const PeerGatherParams& p, const unsigned char* row, int cell,
                             std::uint32_t epoch) {
  const CellUnits units = units_of_cell<Form>(cell);
  const uint2 first = loaded_unit<Wide>(p, row, units.first);
  if (ends_form<Form>(cell)) return {first.x, first.y, 0, epoch};
  const uint2 second = loaded_unit<Wide>(p, row, units.first + 1);
  return {first.x, first.y, second.x, second.y};
}

template <RowForm Form, bool Wide>
__device__ void store_to_row(const PeerGatherParams& p, unsigned char* row, int cell,
                             const uint4& words) {
  const CellUnits units = units_of_cell<Form>(cell);
  store_unit<Wide>(p, row, units.first, {words.x, words.y});
  if (!ends_form<Form>(cell)) store_unit<Wide>(p, row, units.first + 1, {words.z, words.w});
}

template <RowForm Form, bool Wide>
__device__ void send_mine(const PeerGatherParams& p, int tokens, std::uint32_t epoch) {
  const CombineTarget& to = p.to;
  const int cells = tokens * to.shares.size(to.rank) * to.row_cells;
  for_my_indices(cells, [&](int index) {
    const bool is_there = index < cells;
    uint4 words;
    CellOfRow at;
    if (is_there) {
      at = cell_of_index<Form>(p.by_cells, index);
      const int token = p.by_own_heads.quotient(at.row);
      const int head = p.by_own_heads.remainder(at.row, token);
      words = cell_of_row<Form, Wide>(p, p.mine.row(token, head), at.cell, epoch);
      store_to_row<Form, Wide>(p, p.all.row(token, to.shares.begin(to.rank) + head), at.cell,
                               words);
    }
    __syncwarp();  // the threads of a line store together
    if (is_there) store_cell_to_others(to, at.row, at.cell, epoch, words);
    return true;
  });
}

template <RowForm Form, bool Wide>
__device__ void place_others(const PeerGatherParams& p, int tokens, std::uint32_t epoch) {
  const CombineTarget& to = p.to;
  const int cells = tokens * to.heads * to.row_cells;
  PeerWait wait;
  for_my_indices(cells, [&](int index) {
    const bool is_there = index < cells;
    const CellOfRow at = cell_of_index<Form>(p.by_cells, is_there ? index : 0);
    const int token = to.by_heads.quotient(at.row);
    const int head = to.by_heads.remainder(at.row, token);
    const RowPlace source = place_of_row(to, token, head);
    const bool is_sent = is_there && source.owner != to.rank;
    const unsigned char* from = cell_at(to, to.rank, source.owner, source.row, at.cell, epoch);
    uint4 words = make_uint4(0, 0, 0, 0);
    if (is_sent) words = ld_relaxed_sys_b128(from);
    words = awaited_cell<Form>(p.call, from, is_sent, source.owner, epoch, wait, words);
    if (wait.has_failed()) return false;
    if (is_sent) store_to_row<Form, Wide>(p, p.all.row(token, head), at.cell, words);
    return true;
  });
}

template <RowForm Form, bool Wide>
__global__ void __launch_bounds__(kBlockThreads<Form>, 2)
    gather(const __grid_constant__ PeerGatherParams p) {
  griddepcontrol_wait();
  start_next_kernel(p.call);
  const std::uint32_t epoch = next_epoch(p.call);
  if (is_meeting_block()) {
    meet_peers(p.call, epoch);
  } else {
    const int tokens = p.planned_tokens != nullptr ? *p.planned_tokens : p.to.tokens;
    send_mine<Form, Wide>(p, tokens, epoch);
    place_others<Form, Wide>(p, tokens, epoch);
  }
  end_epoch(p.call, epoch);
}

using Kernel = void (*)(PeerGatherParams);

Kernel kernel_for(RowForm form, bool is_wide) {
  if (form == RowForm::kWords) {
    return is_wide ? gather<RowForm::kWords, true> : gather<RowForm::kWords, false>;
  }
  return is_wide ? gather<RowForm::kLines, true> : gather<RowForm::kLines, false>;
}

bool has_whole_units(const GatheredRows& rows) {
  return reinterpret_cast<std::uintptr_t>(rows.data) % kUnitBytes == 0 &&
         rows.token_stride % kUnitBytes == 0 && rows.head_stride % kUnitBytes == 0;
}

}  // namespace

cudaError_t load_peer_gather_kernels() {
  return load_kernels(kernel_for(RowForm::kWords, true), kernel_for(RowForm::kWords, false),
                      kernel_for(RowForm::kLines, true), kernel_for(RowForm::kLines, false));
}

cudaError_t launch_peer_gather(const PeerGatherParams& params, cudaStream_t stream) {
  const bool is_wide = params.row_bytes % kUnitBytes == 0 && has_whole_units(params.mine) &&
                       has_whole_units(params.all);
  const bool are_words = params.to.form == RowForm::kWords;
  const int threads = are_words ? kBlockThreads<RowForm::kWords> : kBlockThreads<RowForm::kLines>;
  const std::int64_t cells = std::int64_t{params.to.tokens} * params.to.heads * params.to.row_cells;
  const auto blocks = static_cast<unsigned>(
      std::clamp<std::int64_t>((cells + threads - 1) / threads, 1, params.most_blocks));
  return launch_overlapping(kernel_for(params.to.form, is_wide), blocks + 1,
                            static_cast<unsigned>(threads), params, stream);
}

}  // namespace kvmesh::cuda
