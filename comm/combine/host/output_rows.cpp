#include "comm/combine/host/output_rows.hpp"

#include "core/numbers/half.hpp"

namespace kvmesh {

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
  store_lse(output, token, head, lse);
}

}  // namespace kvmesh
