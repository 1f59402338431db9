#include "kernels/cuda/common/row_alignment.hpp"

#include <cstdint>

namespace kvmesh::cuda {

bool begins_at_16_bytes(const ConstTensorView& view) {
  const auto unit = static_cast<std::int64_t>(16 / size_bytes(view.dtype));
  bool aligned = reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0;
  for (int dim = 0; dim + 1 < view.dims; ++dim) aligned &= view.stride(dim) % unit == 0;
  return aligned;
}

}  // namespace kvmesh::cuda
