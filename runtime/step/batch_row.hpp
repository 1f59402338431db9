// Views of single batch rows of PyTorch's [B, H, S, D] tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kvmesh/tensor.hpp"

namespace kvmesh {

/// Row b of a [B, H, S, D] tensor as [S, H, D].
template <class View>
View batch_row(const View& tensor, std::int64_t b) {
  const std::int64_t offset =
      b * tensor.stride(0) * static_cast<std::int64_t>(size_bytes(tensor.dtype));
  using Bytes = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(tensor.data)>>,
                                   const std::byte*, std::byte*>;
  return View(static_cast<Bytes>(tensor.data) + offset, tensor.dtype,
              {tensor.size(2), tensor.size(1), tensor.size(3)},
              {tensor.stride(2), tensor.stride(1), tensor.stride(3)});
}

}  // namespace kvmesh
