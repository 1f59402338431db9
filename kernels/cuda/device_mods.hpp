// Mods as a kernel takes them: their text, and what they captured, on the device.
#pragma once

#include <vector>

#include "kernels/cuda/device_buffer.hpp"
#include "kernels/mods/emit_cuda.hpp"

namespace kvmesh::cuda {

class DeviceMods {
 public:
  DeviceMods(const ModGraph& score, const ModGraph& mask) : mods_(emit_cuda(score, mask)) {
    for (std::size_t i = 0; i < mods_.buffers.size(); ++i) {
      const ModBuffer& buffer = mods_.buffers[i];
      const std::size_t element = buffer.type == ModType::kBool ? 1 : 4;
      data_.push_back(upload(std::span(static_cast<const std::byte*>(buffer.data),
                                       static_cast<std::size_t>(buffer.size) * element)));
      buffers_.views[i] = {data_.back().data(), static_cast<int>(buffer.size)};
    }
  }

  const CudaMods& text() const { return mods_; }
  const ModBuffers& buffers() const { return buffers_; }

 private:
  CudaMods mods_;
  std::vector<DeviceBuffer> data_;
  ModBuffers buffers_{};
};

}  // namespace kvmesh::cuda
