// A contiguous copy on the host of a tensor on a device.
#pragma once

#include <cstddef>
#include <vector>

#include "core/tensors/copy_rows.hpp"
#include "kvmesh/tensor.hpp"

namespace kvmesh {

/// Serves one tensor after another: its memory grows and is kept.
class HostCopy {
 public:
  /// For a tensor [tokens, heads, dim] (last dimension contiguous) or [tokens, heads] of any
  /// strides. Copies nothing. Returns the view on the host.
  TensorView of(const TensorView& device);

  /// Copies between the tensor of the last `of` and the host, for GPUs in the order of the default
  /// stream: wait for it before the result is read.
  void download() const;
  void upload() const;

  std::size_t held_bytes() const { return bytes_.size(); }

 private:
  TensorView device_{}, host_{};
  std::vector<std::byte> bytes_;
};

/// The rectangles that make up the copy of `from` to `to`, two tensors of one shape and dtype: all
/// at once, one per token or one per head where the strides allow it, else one per row.
std::vector<Rows> rectangles(const TensorView& to, const ConstTensorView& from);

/// Copies `from` to `to`, as copy_rows does.
void copy_tensor(const TensorView& to, const ConstTensorView& from, Device device,
                 Stream stream = {});

}  // namespace kvmesh
