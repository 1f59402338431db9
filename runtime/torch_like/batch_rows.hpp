// PyTorch's [B, H, S, D] tensors as the rows [tokens, H, D] of the kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include "core/check.hpp"
#include "core/checked.hpp"
#include "core/numbers/half.hpp"
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
              {tensor.stride(2), tensor.stride(1), tensor.stride(3)}, tensor.device);
}

/// Copies [S, H, D] rows, converting their elements.
inline void copy_rows(const ConstTensorView& from, const TensorView& to) {
  for (std::int64_t t = 0; t < from.size(0); ++t) {
    for (std::int64_t h = 0; h < from.size(1); ++h) {
      const std::int64_t source = t * from.stride(0) + h * from.stride(1);
      const std::int64_t target = t * to.stride(0) + h * to.stride(1);
      for (std::int64_t d = 0; d < from.size(2); ++d) {
        store_element(to.data, to.dtype, target + d,
                      load_element(from.data, from.dtype, source + d));
      }
    }
  }
}

/// A [B, H, S, D] tensor as [B * S, H, D]: a view where the strides allow it, else, in host memory,
/// an array in float32 beside it.
template <class View>
class BatchRows {
 public:
  /// @throws InvalidArgument for device memory with other strides.
  BatchRows(const char* what, const View& tensor) : tensor_(tensor), rows_(tensor) {
    const std::int64_t batch = tensor.size(0), length = tensor.size(2);
    rows_.dims = 3;
    rows_.shape = {batch * length, tensor.size(1), tensor.size(3)};
    rows_.strides = {tensor.stride(length == 1 ? 0 : 2), tensor.stride(1), tensor.stride(3)};
    if (batch == 1 || length == 1 || tensor.stride(0) == length * tensor.stride(2)) return;
    require(tensor.device.kind == DeviceKind::kCpu,
            "forward: the strides of {} {} do not let batch and tokens be one dimension", what,
            tensor);
    beside_.resize(static_cast<std::size_t>(
        checked_product("forward: rows", {batch, length, tensor.size(1), tensor.size(3)})));
    rows_ = tensor_of(beside_.data());
  }
  BatchRows(const BatchRows&) = delete;
  BatchRows& operator=(const BatchRows&) = delete;

  const View& view() const { return rows_; }
  /// Fills the array beside the tensor, if there is one.
  void copy_in() {
    for_each([](const auto& row, const TensorView& beside) { copy_rows(row, beside); });
  }
  /// Writes the array to the tensor, if there is one.
  void copy_out() {
    for_each([](const auto& row, const TensorView& beside) { copy_rows(beside, row); });
  }

 private:
  TensorView tensor_of(float* data) const {
    return tensor(data, {rows_.size(0), rows_.size(1), rows_.size(2)});
  }
  template <class Copy>
  void for_each(Copy copy) {
    if (beside_.empty()) return;
    const std::int64_t length = tensor_.size(2), row = length * rows_.size(1) * rows_.size(2);
    for (std::int64_t b = 0; b < tensor_.size(0); ++b) {
      copy(batch_row(tensor_, b),
           tensor(beside_.data() + b * row, {length, rows_.size(1), rows_.size(2)}));
    }
  }

  View tensor_;
  std::vector<float> beside_;
  View rows_;
};

}  // namespace kvmesh
