// Copies host tensors to the mesh's device and back, for an engine whose own layers run on the CPU.
#pragma once

#include "kvmesh/device_memory.hpp"
#include "kvmesh/mesh.hpp"
#include "kvmesh/tensor.hpp"

namespace kvmesh::launch {

/// One tensor's place on the device. The memory grows and is kept.
class DeviceStage {
 public:
  explicit DeviceStage(Mesh& mesh) : mesh_(&mesh) {}

  /// Returns a copy of `host` on the device, with the same strides. On the CPU: `host` itself.
  ConstTensorView put(const ConstTensorView& host);
  /// Returns device memory for a tensor of the form of `host`. On the CPU: `host` itself.
  TensorView room_for(const TensorView& host);
  /// Waits until the device has done all its work, then copies the memory of room_for to `host`.
  void fetch(const TensorView& host);

 private:
  TensorView place(const ConstTensorView& host);

  Mesh* mesh_;
  DeviceMemory memory_;
};

}  // namespace kvmesh::launch
