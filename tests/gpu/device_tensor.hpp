// A copy of a host tensor on the device, with the same strides and the same gaps.
#pragma once

#include <cstdint>
#include <optional>

#include "core/cuda/device_buffer.hpp"
#include "kvmesh/device_memory.hpp"
#include "kvmesh/page_format.hpp"

namespace kvmesh::test {

/// Bytes from a view's first element to the end of its last.
inline std::size_t extent_bytes(const ConstTensorView& view) {
  std::int64_t last = 0;
  for (int dim = 0; dim < view.dims; ++dim) {
    if (view.size(dim) == 0) return 0;
    last += (view.size(dim) - 1) * view.stride(dim);
  }
  return static_cast<std::size_t>(last + 1) * size_bytes(view.dtype);
}

class DeviceTensor {
 public:
  /// In memory of the current device.
  explicit DeviceTensor(const ConstTensorView& host) : host_(host), buffer_(extent_bytes(host)) {
    check(cudaGetDevice(&device_), "asking for the current device");
    if (buffer_.size_bytes() == 0) return;
    copy_bytes(buffer_.data(), host.data, buffer_.size_bytes());
  }

  TensorView view() const {
    TensorView view;
    view.data = buffer_.data();
    view.dtype = host_.dtype;
    view.dims = host_.dims;
    view.shape = host_.shape;
    view.strides = host_.strides;
    view.device = {DeviceKind::kCuda, device_};
    return view;
  }
  /// REQUIRES: what writes it on a non-blocking stream is done.
  void download(void* to) const {
    if (buffer_.size_bytes() == 0) return;
    check(cudaMemcpy(to, buffer_.data(), buffer_.size_bytes(), cudaMemcpyDeviceToHost),
          "copying a test's tensor from the device");
  }

 private:
  ConstTensorView host_;
  cuda::DeviceBuffer buffer_;
  int device_ = 0;
};

/// A copy of a host pool on the device.
class DevicePool {
 public:
  explicit DevicePool(const ConstKvPool& host)
      : host_(host),
        k_(host.k),
        v_(host.v),
        k_scales_(scales(host.k_scale)),
        v_scales_(scales(host.v_scale)) {}

  ConstKvPool view() const {
    ConstKvPool view{k_.view(), v_.view(), host_.k_scale, host_.v_scale};
    if (host_.is_latent()) {
      view.v = view.k;
      view.v.shape[3] = host_.v.size(3);
    }
    if (k_scales_) view.k_scale.per_token = k_scales_->view();
    if (v_scales_) view.v_scale.per_token = v_scales_->view();
    return view;
  }

 private:
  static std::optional<DeviceTensor> scales(const BasicRowScale<ConstTensorView>& scale) {
    if (scale.per_token.data == nullptr) return std::nullopt;
    return std::optional<DeviceTensor>(std::in_place, scale.per_token);
  }

  ConstKvPool host_;
  DeviceTensor k_, v_;
  std::optional<DeviceTensor> k_scales_, v_scales_;
};

}  // namespace kvmesh::test
