#include "kernels/cuda/attend/device_pool.hpp"

#include <algorithm>
#include <limits>

#include "core/check.hpp"

namespace kvmesh::cuda {

void check_device_pool(const ConstTensorView& pool) {
  const auto fits = [&](int dim, std::int64_t count) {
    const auto element = static_cast<std::int64_t>(size_bytes(pool.dtype));
    const std::int64_t most = std::numeric_limits<std::uint32_t>::max() / (count * element);
    return pool.stride(dim) >= 0 && pool.stride(dim) <= most;
  };
  require(fits(0, 1) && fits(2, std::max<std::int64_t>(pool.size(2), 1)),
          "attend_partial: a stride of the pool {} is over 4 GiB", pool);
}

DevicePool device_pool(const ConstTensorView& pool) {
  const auto bytes = [&](int dim) {
    return static_cast<std::uint32_t>(static_cast<std::size_t>(pool.stride(dim)) *
                                      size_bytes(pool.dtype));
  };
  return {.data = pool.data,
          .head_stride = pool.stride(1),
          .page_stride_bytes = bytes(0),
          .token_stride_bytes = bytes(2)};
}

}  // namespace kvmesh::cuda
