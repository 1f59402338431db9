// Cells of rows, one per thread: the values of each, from a row of floats into 16 bytes and back.
#pragma once

#include "comm/combine/peer/kernels/peer_exchange.cuh"
#include "comm/combine/peer/kernels/peer_params.hpp"

namespace kvmesh::cuda {

template <Dtype Wire>
__device__ inline float2 unpacked_pair(std::uint32_t pair) {
  if constexpr (Wire == Dtype::kFloat16) {
    return {cvt_f32_f16(static_cast<std::uint16_t>(pair & 0xFFFFu)),
            cvt_f32_f16(static_cast<std::uint16_t>(pair >> 16))};
  } else {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000u)};
  }
}

template <Dtype Wire>
__device__ inline void unpack_unit(const uint2& unit, float* values) {
  if constexpr (Wire == Dtype::kFloat32) {
    values[0] = __uint_as_float(unit.x);
    values[1] = __uint_as_float(unit.y);
  } else {
    const float2 low = unpacked_pair<Wire>(unit.x), high = unpacked_pair<Wire>(unit.y);
    values[0] = low.x;
    values[1] = low.y;
    values[2] = high.x;
    values[3] = high.y;
  }
}

/// Values of a cell at most: of words one unit, of lines two.
template <Dtype Wire, RowForm Form>
constexpr int kCellValues = kUnitValues<Wire>*(Form == RowForm::kWords ? 1 : 2);

/// A cell of a thread: which of a row's, and the values that it has.
struct MyCell {
  int row, cell;
  int first, count;  // values
  bool is_there;
};

template <Dtype Wire, RowForm Form>
__device__ inline MyCell my_cell(const PeerParams& p, int index, int count) {
  MyCell mine{};
  mine.is_there = index < count;
  if (!mine.is_there) return mine;
  const CellOfRow at = cell_of_index<Form>(p.by_cells, index);
  mine.row = at.row;
  mine.cell = at.cell;
  const CellUnits units = units_of_cell<Form>(mine.cell);
  mine.first = units.first * kUnitValues<Wire>;
  mine.count = max(0, min(units.count * kUnitValues<Wire>, p.to.dim - mine.first));
  return mine;
}

/// The row's values of a cell; 0 past the row's end.
template <Dtype Wire, RowForm Form, bool Wide>
__device__ inline void load_values(const float* row, const MyCell& mine, float* values) {
  constexpr int kUnit = kUnitValues<Wire>;
#pragma unroll
  for (int i = 0; i < kCellValues<Wire, Form>; i += kUnit) {
    if constexpr (Wide && kUnit == 4) {
      float4 four = make_float4(0, 0, 0, 0);
      if (i < mine.count) four = *reinterpret_cast<const float4*>(row + mine.first + i);
      values[i] = four.x, values[i + 1] = four.y, values[i + 2] = four.z, values[i + 3] = four.w;
    } else if constexpr (Wide) {
      static_assert(kUnit == 2);
      float2 two = make_float2(0, 0);
      if (i < mine.count) two = *reinterpret_cast<const float2*>(row + mine.first + i);
      values[i] = two.x, values[i + 1] = two.y;
    } else {
#pragma unroll
      for (int k = i; k < i + kUnit; ++k) values[k] = k < mine.count ? row[mine.first + k] : 0.0f;
    }
  }
}

template <Dtype Wire, RowForm Form>
__device__ inline uint4 packed_cell(const float* values, int cell, float lse, std::uint32_t epoch) {
  const uint2 first = packed_unit<Wire>(values);
  if (ends_form<Form>(cell)) return {first.x, first.y, __float_as_uint(lse), epoch};
  const uint2 second =
      packed_unit<Wire>(values + (Form == RowForm::kWords ? 0 : kUnitValues<Wire>));
  return {first.x, first.y, second.x, second.y};
}

template <Dtype Wire, RowForm Form>
__device__ inline void unpack_cell(const uint4& cell, float* values) {
  unpack_unit<Wire>({cell.x, cell.y}, values);
  if constexpr (Form == RowForm::kLines) {
    unpack_unit<Wire>({cell.z, cell.w}, values + kUnitValues<Wire>);
  }
}

}  // namespace kvmesh::cuda
