// Stores of rows into the windows of a combine: see core/pod/combine_target.hpp. Any kernel that
// computes a partial may store it: the combine's own, or the one that merges an attention's splits.
// For nvcc and NVRTC.
#pragma once

#include "core/cuda/device/half_pairs.cuh"
#include "core/cuda/device/system_memory.cuh"
#include "core/pod/combine_target.hpp"

namespace kvmesh::cuda {

/// Values that travel in one unit.
template <Dtype Wire>
constexpr int kUnitValues = 8 * kUnitBytes / info_of(Wire).bits;

template <Dtype Wire>
__device__ inline uint2 packed_unit(const float* values) {
  if constexpr (Wire == Dtype::kFloat32) {
    return {__float_as_uint(values[0]), __float_as_uint(values[1])};
  } else if constexpr (Wire == Dtype::kFloat16) {
    return {cvt_rn_f16x2(values[0], values[1]), cvt_rn_f16x2(values[2], values[3])};
  } else {
    static_assert(Wire == Dtype::kBFloat16);
    return {cvt_rn_bf16x2(values[0], values[1]), cvt_rn_bf16x2(values[2], values[3])};
  }
}

/// The units of a row that a cell has: one of a row as words; of a line two, and one in its last.
struct CellUnits {
  int first, count;
};

template <RowForm Form>
__device__ inline CellUnits units_of_cell(int cell) {
  if constexpr (Form == RowForm::kWords) return {cell, 1};
  const int line = cell / kCellsPerLine, place = cell % kCellsPerLine;
  return {line * kUnitsPerLine + 2 * place, place == kCellsPerLine - 1 ? 1 : 2};
}

/// Whether a cell has the LSE and the epoch, in its third and fourth word.
template <RowForm Form>
__device__ inline bool ends_form(int cell) {
  return Form == RowForm::kWords || cell % kCellsPerLine == kCellsPerLine - 1;
}

/// The owner of a row (-1: every rank), and its place among the owner's rows.
struct RowPlace {
  int owner, row;
};

__device__ inline RowPlace place_of_row(const CombineTarget& to, int token, int head) {
  const RowShares& shares = to.shares;
  if (shares.axis == RowShares::Axis::kNone) return {-1, token * to.heads + head};
  if (shares.axis == RowShares::Axis::kOwners) {
    return {static_cast<int>(to.owners[token]), token * to.heads + head};
  }
  const int item = shares.axis == RowShares::Axis::kTokens ? token : head;
  const int in_larger = shares.extra * (shares.least + 1);
  const int owner = item < in_larger ? shares.by_more.quotient(item)
                                     : shares.extra + shares.by_least.quotient(item - in_larger);
  const int place = item - shares.begin(owner);
  const bool by_token = shares.axis == RowShares::Axis::kTokens;
  return {owner, by_token ? place * to.heads + head : token * shares.size(owner) + place};
}

/// Returns the address of a cell of a row from `source` in the window of `owner`.
__device__ inline unsigned char* cell_at(const CombineTarget& to, int owner, int source, int row,
                                         int cell, std::uint32_t epoch) {
  const std::int64_t place = std::int64_t{source * to.block_rows + row} * to.row_cells + cell;
  return to.windows[owner] + to.slots_offset + (epoch & 1) * to.slot_bytes + place * kCellBytes;
}

__device__ inline std::uint64_t participants_of(const CombineTarget& to, int token) {
  return to.participants == nullptr ? ~std::uint64_t{0} : to.participants[token];
}

/// Stores a cell of this rank's row in the windows of all other ranks. Each rank begins with the
/// next one, so that no link has all stores at once.
__device__ inline void store_cell_to_others(const CombineTarget& to, int row, int cell,
                                            std::uint32_t epoch, const uint4& words) {
  for (int i = 1; i < to.ranks; ++i) {
    const int owner = to.rank + i < to.ranks ? to.rank + i : to.rank + i - to.ranks;
    st_relaxed_sys_b128(cell_at(to, owner, to.rank, row, cell, epoch), words);
  }
}

/// Stores a cell of this rank's row to the row's owner, or to all ranks. The eight threads of a
/// line store it in one instruction.
__device__ inline void store_cell(const CombineTarget& to, const RowPlace& place, int cell,
                                  std::uint32_t epoch, const uint4& words) {
  if (place.owner < 0) store_cell_to_others(to, place.row, cell, epoch, words);
  const int owner = place.owner < 0 ? to.rank : place.owner;
  st_relaxed_sys_b128(cell_at(to, owner, to.rank, place.row, cell, epoch), words);
}

/// Stores four neighbours of a row, which begins a unit at `column`, as words; of the last, values
/// past the row's end are 0.
__device__ inline void store_four(const CombineTarget& to, const RowPlace& place, int column,
                                  const float (&values)[4], float lse, std::uint32_t epoch) {
  const auto store = [&](int cell, const uint2& unit) {
    store_cell(to, place, cell, epoch, {unit.x, unit.y, __float_as_uint(lse), epoch});
  };
  switch (to.travels_as) {
    case Dtype::kFloat32:
      store(column / 2, packed_unit<Dtype::kFloat32>(values));
      if (column + 2 < to.dim) store(column / 2 + 1, packed_unit<Dtype::kFloat32>(values + 2));
      return;
    case Dtype::kFloat16:
      return store(column / 4, packed_unit<Dtype::kFloat16>(values));
    case Dtype::kBFloat16:
      return store(column / 4, packed_unit<Dtype::kBFloat16>(values));
    case Dtype::kFloat8E4M3:
      return;  // no partial travels as such
  }
}

}  // namespace kvmesh::cuda
