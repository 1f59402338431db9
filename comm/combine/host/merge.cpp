#include "comm/combine/host/merge.hpp"

#include <algorithm>

#include "core/half.hpp"

namespace kvmesh {
namespace {

/// `destination` is as long as `row`; a plain loop, which the compiler vectorises.
template <class Convert>
void convert_row(std::uint16_t* __restrict destination, const float* __restrict row,
                 std::int64_t dim, const Convert& convert) {
  for (std::int64_t i = 0; i < dim; ++i) destination[i] = convert(row[i]);
}

}  // namespace

void add_scaled_row(float* __restrict sum, const float* __restrict row, float weight,
                    std::int64_t dim) {
  for (std::int64_t i = 0; i < dim; ++i) sum[i] += weight * row[i];
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
  switch (view.dtype) {
    case Dtype::kFloat32:
      std::copy_n(o, dim, static_cast<float*>(view.data) + at);
      break;
    case Dtype::kFloat16:
      convert_row(static_cast<std::uint16_t*>(view.data) + at, o, dim, float_to_float16);
      break;
    case Dtype::kBFloat16:
      convert_row(static_cast<std::uint16_t*>(view.data) + at, o, dim, float_to_bfloat16);
      break;
  }
  if (output.lse.empty()) return;
  static_cast<float*>(output.lse.data)[token * output.lse.stride(0) + head * output.lse.stride(1)] =
      lse;
}

}  // namespace kvmesh
