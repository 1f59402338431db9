// Mods as a kernel takes them: their text, and what they captured, on the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda/common/upload.hpp"
#include "kernels/mods/emit_cuda.hpp"

namespace kvmesh::cuda {

class DeviceMods {
 public:
  DeviceMods(const ModGraph& score, const ModGraph& mask);

  const CudaMods& text() const { return mods_; }
  /// At addresses that stay. REQUIRES: sent.
  const ModBuffers& buffers() const { return buffers_; }

  /// Sends the buffers if any was set since they were sent last, after what is on the stream. Waits
  /// until it `is_taken`.
  void send(cudaStream_t stream);
  /// Whether the device has taken what was sent last.
  bool is_taken() const { return upload_.is_taken(); }
  std::size_t size_bytes() const { return upload_.size_bytes(); }

 private:
  CudaMods mods_;
  Upload upload_;
  std::vector<std::uint64_t> sent_versions_;
  ModBuffers buffers_{};
};

}  // namespace kvmesh::cuda
