#include "comm/combine/host/row_kernels.hpp"

#include "core/numbers/highway_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "comm/combine/host/row_kernels.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// foreach_target.h must come before these.
#include <hwy/highway.h>

#include "core/numbers/float_math-inl.hpp"
#include "core/pod/row_merge.hpp"

HWY_BEFORE_NAMESPACE();
namespace kvmesh::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using RowTag = hn::CappedTag<float, static_cast<std::size_t>(kRowLanes)>;
using RowVector = hn::Vec<RowTag>;
constexpr RowTag kFloats;

/// A group of rows, one in each lane.
void merge_lanes(const float* lses, std::int64_t ranks, std::int64_t stride, float* weights,
                 float* merged) {
  const RowVector no_keys = hn::Set(kFloats, kNoKeys);
  RowVector largest = no_keys;
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const RowVector lse = hn::LoadU(kFloats, lses + rank * stride);
    largest = hn::IfThenElse(hn::Gt(lse, largest), lse, largest);  // not if it is NaN
  }
  const RowVector shift = hn::IfThenZeroElse(hn::Eq(largest, no_keys), largest);
  RowVector sum = hn::Zero(kFloats);
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const RowVector lse = hn::LoadU(kFloats, lses + rank * stride);
    const RowVector weight = exp_everywhere(kFloats, hn::Sub(lse, shift));
    hn::StoreU(weight, kFloats, weights + rank * stride);
    sum = hn::Add(sum, weight);
  }
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const RowVector lse = hn::LoadU(kFloats, lses + rank * stride);
    const RowVector share = hn::Div(hn::LoadU(kFloats, weights + rank * stride), sum);
    hn::StoreU(hn::IfThenZeroElse(hn::Eq(lse, no_keys), share), kFloats, weights + rank * stride);
  }
  hn::StoreU(hn::Add(shift, log_everywhere(kFloats, sum)), kFloats, merged);
}

void MergeLses(const float* lses, std::int64_t ranks, std::int64_t rows, float* weights,
               float* merged) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(kFloats));
  for (std::int64_t row = 0; row < rows; row += lanes) {
    merge_lanes(lses + row, ranks, rows, weights + row, merged + row);
  }
}

/// Calls on_lanes(i) for whole vectors of a row, then on_one(i) for the elements that are left.
template <class OnLanes, class OnOne>
HWY_INLINE void for_row(std::int64_t dim, const OnLanes& on_lanes, const OnOne& on_one) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(kFloats));
  std::int64_t i = 0;
  for (; i + lanes <= dim; i += lanes) on_lanes(i);
  for (; i < dim; ++i) on_one(i);
}

void ScaleRow(float* HWY_RESTRICT scaled, const float* HWY_RESTRICT row, float weight,
              std::int64_t dim) {
  const RowVector weights = hn::Set(kFloats, weight);
  for_row(
      dim,
      [&](std::int64_t i) HWY_ATTR {
        hn::StoreU(hn::Mul(weights, hn::LoadU(kFloats, row + i)), kFloats, scaled + i);
      },
      [&](std::int64_t i) { scaled[i] = weight * row[i]; });
}

void AddRow(float* HWY_RESTRICT sum, const float* HWY_RESTRICT row, std::int64_t dim) {
  for_row(
      dim,
      [&](std::int64_t i) HWY_ATTR {
        hn::StoreU(hn::Add(hn::LoadU(kFloats, sum + i), hn::LoadU(kFloats, row + i)), kFloats,
                   sum + i);
      },
      [&](std::int64_t i) { sum[i] += row[i]; });
}

/// In one pass, so that no sum of one source goes to memory.
void SumTwo(float* HWY_RESTRICT sum, const WeightedRow& a, const WeightedRow& b, std::int64_t dim) {
  const RowVector a_weight = hn::Set(kFloats, a.weight), b_weight = hn::Set(kFloats, b.weight);
  for_row(
      dim,
      [&](std::int64_t i) HWY_ATTR {
        const RowVector first =
            hn::Add(hn::Zero(kFloats), hn::Mul(a_weight, hn::LoadU(kFloats, a.o + i)));
        hn::StoreU(hn::Add(first, hn::Mul(b_weight, hn::LoadU(kFloats, b.o + i))), kFloats,
                   sum + i);
      },
      [&](std::int64_t i) { sum[i] = (0.0f + a.weight * a.o[i]) + b.weight * b.o[i]; });
}

void AddScaled(float* HWY_RESTRICT sum, const WeightedRow& source, std::int64_t dim) {
  const RowVector weight = hn::Set(kFloats, source.weight);
  for_row(
      dim,
      [&](std::int64_t i) HWY_ATTR {
        const RowVector product = hn::Mul(weight, hn::LoadU(kFloats, source.o + i));
        hn::StoreU(hn::Add(hn::LoadU(kFloats, sum + i), product), kFloats, sum + i);
      },
      [&](std::int64_t i) { sum[i] += source.weight * source.o[i]; });
}

}  // namespace kvmesh::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <algorithm>

namespace kvmesh {

HWY_EXPORT(MergeLses);
HWY_EXPORT(ScaleRow);
HWY_EXPORT(AddRow);
HWY_EXPORT(SumTwo);
HWY_EXPORT(AddScaled);

void merge_lses(const float* lses, std::int64_t ranks, std::int64_t rows, float* weights,
                float* merged) {
  HWY_DYNAMIC_DISPATCH(MergeLses)(lses, ranks, rows, weights, merged);
}

void sum_rows(float* sum, std::span<const WeightedRow> sources, std::int64_t dim) {
  std::size_t done = 0;
  if (sources.size() >= 2) {
    HWY_DYNAMIC_DISPATCH(SumTwo)(sum, sources[0], sources[1], dim);
    done = 2;
  } else {
    std::fill_n(sum, dim, 0.0f);
  }
  for (const WeightedRow& source : sources.subspan(done)) {
    HWY_DYNAMIC_DISPATCH(AddScaled)(sum, source, dim);
  }
}

void scale_row(float* scaled, const float* row, float weight, std::int64_t dim) {
  HWY_DYNAMIC_DISPATCH(ScaleRow)(scaled, row, weight, dim);
}

void add_row(float* sum, const float* row, std::int64_t dim) {
  HWY_DYNAMIC_DISPATCH(AddRow)(sum, row, dim);
}

}  // namespace kvmesh

#endif  // HWY_ONCE
