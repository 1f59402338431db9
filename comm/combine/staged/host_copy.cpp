#include "comm/combine/staged/host_copy.hpp"

#include "core/tensors/copy_tensor.hpp"

namespace kvmesh {

TensorView HostCopy::like(const ConstTensorView& device) {
  const auto bytes = static_cast<std::size_t>(device.elements()) * size_bytes(device.dtype);
  if (bytes > bytes_.size()) bytes_.resize(bytes);
  host_ = device.dims == 3
              ? TensorView(bytes_.data(), device.dtype,
                           {device.size(0), device.size(1), device.size(2)})
              : TensorView(bytes_.data(), device.dtype, {device.size(0), device.size(1)});
  return host_;
}

TensorView HostCopy::download(const ConstTensorView& device) {
  copy_tensor(like(device), device, device.device);
  return host_;
}

void HostCopy::upload(const TensorView& device) const { copy_tensor(device, host_, device.device); }

}  // namespace kvmesh
