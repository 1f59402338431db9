#include "comm/combine/staged/host_copy.hpp"

#include "core/tensors/copy_tensor.hpp"

namespace kvmesh {

TensorView HostCopy::of(const TensorView& device) {
  const auto bytes = static_cast<std::size_t>(device.elements()) * size_bytes(device.dtype);
  if (bytes > bytes_.size()) bytes_.resize(bytes);
  device_ = device;
  host_ = device.dims == 3
              ? TensorView(bytes_.data(), device.dtype,
                           {device.size(0), device.size(1), device.size(2)})
              : TensorView(bytes_.data(), device.dtype, {device.size(0), device.size(1)});
  return host_;
}

void HostCopy::download() const { copy_tensor(host_, device_, device_.device); }

void HostCopy::upload() const { copy_tensor(device_, host_, device_.device); }

}  // namespace kvmesh
