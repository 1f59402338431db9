// A contiguous copy on the host of a tensor on a device.
#pragma once

#include <cstddef>
#include <vector>

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

}  // namespace kvmesh
