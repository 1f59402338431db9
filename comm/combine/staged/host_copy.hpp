// A contiguous copy on the host of a tensor on a device.
#pragma once

#include <cstddef>
#include <vector>

#include "kvmesh/tensor.hpp"

namespace kvmesh {

/// Serves one tensor after another: its memory grows and is kept.
class HostCopy {
 public:
  /// Returns memory on the host, until the next `like`, for a tensor [tokens, heads, dim] (last
  /// dimension contiguous) or [tokens, heads] of any strides. Copies nothing.
  TensorView like(const ConstTensorView& device);

  /// Copies `device` to the memory that `like` returns for it, which is returned. For GPUs in the
  /// order of the default stream: wait for it before the result is read.
  TensorView download(const ConstTensorView& device);
  /// Copies back to `device`, for GPUs as download. REQUIRES: the last `like` or `download` was of
  /// a tensor of its shape and dtype.
  void upload(const TensorView& device) const;

  std::size_t held_bytes() const { return bytes_.size(); }

 private:
  TensorView host_{};
  std::vector<std::byte> bytes_;
};

}  // namespace kvmesh
