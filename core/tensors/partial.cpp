#include "kvmesh/partial.hpp"

#include <array>
#include <numbers>

#include "core/numbers/softmax_merge.hpp"
#include "core/tensors/tensor_check.hpp"

namespace kvmesh {
namespace {

float* lse_at(const TensorView& lse, std::int64_t token, std::int64_t head) {
  return static_cast<float*>(lse.data) + token * lse.stride(0) + head * lse.stride(1);
}

float* o_at(const TensorView& o, std::int64_t token, std::int64_t head) {
  return static_cast<float*>(o.data) + token * o.stride(0) + head * o.stride(1);
}

// The O of an empty subset may be anything, even NaN: 0 * NaN would leak it. A weight that
// underflows does not mean an empty subset.
struct Weighted {
  Weighted(float lse, float merged) : is_empty(lse == kNoKeys), weight(merge_weight(lse, merged)) {}
  float operator()(float value) const { return is_empty ? 0.0f : weight * value; }

  bool is_empty;
  float weight;
};

void merge_row(float* o, float& lse, const float* source_o, float source_lse, std::int64_t dim) {
  const float merged = merged_lse(std::array{lse, source_lse});
  const Weighted keep(lse, merged), add(source_lse, merged);
  for (std::int64_t i = 0; i < dim; ++i) o[i] = keep(o[i]) + add(source_o[i]);
  lse = merged;
}

template <LogBase Base>
void check(const BasicPartial<Base>& partial, std::string_view name) {
  const TensorView &o = partial.o, &lse = partial.lse;
  check_output_tensor(name, o, 3);
  check_output_tensor(name, lse, 2);
  require(o.dtype == Dtype::kFloat32 && lse.dtype == Dtype::kFloat32 && o.device == Device() &&
              lse.device == Device() && (o.size(2) <= 1 || o.stride(2) == 1) &&
              lse.size(0) == o.size(0) && lse.size(1) == o.size(1),
          "{} is no partial on the CPU: o {}, lse {}", name, o, lse);
}

}  // namespace

Partial to_natural(const Base2Partial& partial) {
  check(partial, "to_natural: the argument");
  for (std::int64_t t = 0; t < partial.lse.size(0); ++t) {
    for (std::int64_t h = 0; h < partial.lse.size(1); ++h) {
      *lse_at(partial.lse, t, h) *= std::numbers::ln2_v<float>;
    }
  }
  return {partial.o, partial.lse};
}

void merge_into(const Partial& destination, const Partial& source) {
  check(destination, "merge_into: the destination");
  check(source, "merge_into: the source");
  require(destination.o.shape == source.o.shape && destination.lse.shape == source.lse.shape,
          "merge_into: destination is {}, source is {}", destination.o, source.o);
  for (std::int64_t t = 0; t < source.o.size(0); ++t) {
    for (std::int64_t h = 0; h < source.o.size(1); ++h) {
      merge_row(o_at(destination.o, t, h), *lse_at(destination.lse, t, h), o_at(source.o, t, h),
                *lse_at(source.lse, t, h), source.o.size(2));
    }
  }
}

}  // namespace kvmesh
