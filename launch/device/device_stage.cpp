#include "launch/device/device_stage.hpp"

namespace kvmesh::launch {
namespace {

// Bytes from the first element to the last, with the gaps between.
std::size_t span_bytes(const ConstTensorView& view) {
  std::int64_t last = 0;
  for (int dim = 0; dim < view.dims; ++dim) last += (view.size(dim) - 1) * view.stride(dim);
  return view.elements() == 0 ? 0 : static_cast<std::size_t>(last + 1) * size_bytes(view.dtype);
}

}  // namespace

TensorView DeviceStage::place(const ConstTensorView& host) {
  if (memory_.size_bytes() < span_bytes(host))
    memory_ = DeviceMemory(mesh_->device(), span_bytes(host));
  TensorView there;
  there.data = memory_.data();
  there.dtype = host.dtype;
  there.dims = host.dims;
  there.shape = host.shape;
  there.strides = host.strides;
  there.device = mesh_->device();
  return there;
}

ConstTensorView DeviceStage::put(const ConstTensorView& host) {
  if (mesh_->device().kind == DeviceKind::kCpu) return host;
  const TensorView there = place(host);
  copy_bytes(there.data, host.data, span_bytes(host));
  return there;
}

TensorView DeviceStage::room_for(const TensorView& host) {
  return mesh_->device().kind == DeviceKind::kCpu ? host : place(host);
}

void DeviceStage::fetch(const TensorView& host) {
  if (mesh_->device().kind == DeviceKind::kCpu) return;
  mesh_->wait({}, "attend");
  copy_bytes(host.data, memory_.data(), span_bytes(host));
}

}  // namespace kvmesh::launch
