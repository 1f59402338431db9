#include "comm/combine/host/merge.hpp"

#include "core/half.hpp"

namespace kvmesh {

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
  with_element(view.dtype, [&]<class Element>(Element) {
    auto* __restrict destination = static_cast<typename Element::Stored*>(view.data) + at;
    for (std::int64_t i = 0; i < dim; ++i) destination[i] = Element::store(o[i]);
  });
  if (output.lse.empty()) return;
  static_cast<float*>(output.lse.data)[token * output.lse.stride(0) + head * output.lse.stride(1)] =
      lse;
}

}  // namespace kvmesh
