// Mods as a kernel takes them: their text, and what they captured, on the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda/device_buffer.hpp"
#include "kernels/mods/emit_cuda.hpp"

namespace kvmesh::cuda {

class DeviceMods {
 public:
  DeviceMods(const ModGraph& score, const ModGraph& mask);

  const CudaMods& text() const { return mods_; }
  /// At addresses that stay.
  const ModBuffers& buffers() const { return buffers_; }

  /// Sends the buffers that were set since they were sent last, after what is on the stream.
  void refresh(cudaStream_t stream);

 private:
  CudaMods mods_;
  std::vector<DeviceBuffer> data_;
  std::vector<std::uint64_t> versions_;
  ModBuffers buffers_{};
};

}  // namespace kvmesh::cuda
