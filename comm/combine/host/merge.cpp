#include "comm/combine/host/merge.hpp"

#include <algorithm>
#include <cmath>

#include "core/half.hpp"
#include "core/softmax_merge.hpp"

namespace kvmesh {

float merge_weights(std::span<const float> lses, std::span<float> weights) {
  float max = kNoKeys;
  for (float lse : lses) max = std::max(max, lse);
  const float shift = merge_shift(max);
  float sum = 0.0f;
  for (std::size_t i = 0; i < lses.size(); ++i) {
    const bool is_largest = lses[i] == shift && std::isfinite(shift);
    weights[i] = is_largest ? 1.0f : std::exp(lses[i] - shift);
    sum += weights[i];
  }
  for (std::size_t i = 0; i < lses.size(); ++i) {
    weights[i] = lses[i] == kNoKeys ? 0.0f : weights[i] / sum;
  }
  return shift + std::log(sum);
}

void sum_rows(float* __restrict sum, std::span<const WeightedRow> sources, std::int64_t dim) {
  std::size_t done = 0;
  if (sources.size() >= 2) {  // in one pass, without a sum of one source in memory
    const float* __restrict a = sources[0].o;
    const float* __restrict b = sources[1].o;
    const float a_weight = sources[0].weight, b_weight = sources[1].weight;
    for (std::int64_t i = 0; i < dim; ++i) sum[i] = (0.0f + a_weight * a[i]) + b_weight * b[i];
    done = 2;
  } else {
    std::fill_n(sum, dim, 0.0f);
  }
  for (const WeightedRow& source : sources.subspan(done)) {
    const float* __restrict o = source.o;
    for (std::int64_t i = 0; i < dim; ++i) sum[i] += source.weight * o[i];
  }
}

void scale_row(float* __restrict scaled, const float* __restrict row, float weight,
               std::int64_t dim) {
  for (std::int64_t i = 0; i < dim; ++i) scaled[i] = weight * row[i];
}

void add_row(float* __restrict sum, const float* __restrict row, std::int64_t dim) {
  for (std::int64_t i = 0; i < dim; ++i) sum[i] += row[i];
}

void store_row(const CombineOutput& output, std::int64_t token, std::int64_t head, const float* o,
               float lse) {
  const TensorView& view = output.o;
  const std::int64_t at = token * view.stride(0) + head * view.stride(1);
  const std::int64_t dim = view.size(2);
  with_element(view.dtype, [&]<class Element>(Element) {
    auto* destination = static_cast<typename Element::Stored*>(view.data) + at;
    if (static_cast<const void*>(destination) == o) return;
    for (std::int64_t i = 0; i < dim; ++i) destination[i] = Element::store(o[i]);
  });
  if (output.lse.empty()) return;
  static_cast<float*>(output.lse.data)[token * output.lse.stride(0) + head * output.lse.stride(1)] =
      lse;
}

}  // namespace kvmesh
